"""An answer of many megabytes, such as log-probabilities of a long prompt, does not cost its client the connection."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from engine.runner.simulated import SimulatedCost, SimulatedRunner
from engine.wire.client import EngineClient
from engine.wire.framing import frame
from engine.wire.limits import MAX_PROMPT_LOGPROBS
from engine.wire.protocol import Finished, Submit, Tokens
from engine.wire.request_terms import Sampling
from tests.engine.lanes.raw_client import RawClient
from tests.engines import running_engine
from tests.factories import runner_info
from tests.services import PATIENCE_S

CHAT = Sampling(max_tokens=50_000, temperature=0.0, ignore_eos=True)
NUM_TOKENS = MAX_PROMPT_LOGPROBS // 21


async def test_a_client_keeps_its_connection_while_it_reads_a_large_answer(tmp_path: Path) -> None:
    runner = SimulatedRunner(
        runner_info(num_blocks=8000, block_size=16, max_model_len=60_000, max_num_seqs=8),
        cost=SimulatedCost(step_s=0.001),
        wait=time.sleep,
    )
    with running_engine(tmp_path, runner) as engine:
        busy, other = await RawClient.connect(engine.url), await EngineClient.connect(engine.url)
        busy.send(
            frame(Submit("chat", [5, 6], CHAT)),
            frame(Submit("long", [5] * NUM_TOKENS, Sampling(max_tokens=0, prompt_logprobs=20))),
        )
        # Until the answer is queued, and the chat has had tokens after it, `busy` reads nothing.
        async with asyncio.timeout(PATIENCE_S):
            while not (await other.stats())["lanes"]["rt"]["finished"]:
                await asyncio.sleep(0.01)
        async with other.submit([7], Sampling(max_tokens=30, temperature=0.0, ignore_eos=True)) as stream:
            assert [message async for message in stream]
        while not isinstance(message := await busy.receive(), Finished):
            assert isinstance(message, Tokens), "the connection was closed"
        assert message.id == "long"
        assert message.prompt_logprobs is not None
        assert message.prompt_logprobs.num_logprobs == 21 * (NUM_TOKENS - 1)
        await busy.close()
        await other.close()
