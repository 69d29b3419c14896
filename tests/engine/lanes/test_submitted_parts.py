"""Requests of several prompts over the socket: one message, one answer, and one rejection."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.runner.simulated import SimulatedRunner
from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone, EngineRejected
from engine.wire.protocol import Finished, PartsFinished
from engine.wire.request_terms import LaneName, Part, Sampling
from tests.engine.lanes.test_socket_server import GREEDY, collect, endless_runner, wait_until
from tests.engines import running_engine
from tests.factories import runner_info

SHARED = list(range(3, 60))
SCORES = Sampling(max_tokens=0, score_token_ids=(5, 6))
PARTS = [
    Part([70], SCORES),
    Part([71, 72], Sampling(max_tokens=0, prompt_logprobs=1)),
    Part([], Sampling(max_tokens=0, pooling="mean")),
    Part([70, 73], SCORES),
]


@pytest.mark.parametrize("lane", ["rt", "be"])
async def test_each_part_is_answered_as_a_request_of_its_own(tmp_path: Path, lane: LaneName) -> None:
    with running_engine(tmp_path) as engine:
        client = await EngineClient.connect(engine.url)
        alone = [
            (await collect(client, SHARED + part.token_ids, part.sampling, lane=lane))[1] for part in PARTS
        ]
        answer = await client.ask(SHARED, PARTS, lane=lane)
        assert isinstance(answer, PartsFinished)
        for found, expected in zip(answer.parts, alone, strict=True):
            assert found.scores == expected.scores
            assert found.prompt_logprobs == expected.prompt_logprobs
            assert found.embedding == expected.embedding
        assert answer.parts[0].scores is not None
        assert answer.parts[0].cached_tokens > 0
        stats = await client.stats()
        assert stats["lanes"][lane]["finished"] == {"length": 2 * len(PARTS)}
        await client.close()


@pytest.mark.parametrize(
    ("shared", "parts", "param"),
    [
        ([5], [], "parts"),
        ([5], [Part([6], SCORES), Part([40_000], SCORES)], "parts[1].token_ids"),
        ([5], [Part([6], SCORES), Part([7], GREEDY)], "parts[1].max_tokens"),
        ([5], [Part([6], SCORES)] * 129, "parts"),
        ([], [Part([6], SCORES), Part([], SCORES)], "parts[1].token_ids"),
        ([5] * 64, [Part([6], SCORES)], "parts[0].token_ids"),
    ],
)
async def test_a_part_that_cannot_be_computed_rejects_all(
    tmp_path: Path, shared: list[int], parts: list[Part], param: str
) -> None:
    with running_engine(tmp_path, max_model_len=64) as engine:
        client = await EngineClient.connect(engine.url)
        with pytest.raises(EngineRejected) as caught:
            await client.ask(shared, parts)
        assert caught.value.param == param
        assert (await client.stats())["lanes"]["rt"]["finished"] == {}
        await client.close()


async def test_a_part_that_fails_ends_the_others(tmp_path: Path) -> None:
    class Faulty(SimulatedRunner):
        def launch(self, plan: Any) -> Any:
            step = super().launch(plan)
            result = step.result()
            for i, end in enumerate(zip(plan.starts, plan.counts, strict=True)):
                if sum(end) == len(SHARED) + 2:
                    result.failed[i] = "no such thing"
            return step

    with running_engine(tmp_path, Faulty(runner_info())) as engine:
        client = await EngineClient.connect(engine.url)
        answer = await client.ask(SHARED, PARTS)
        assert isinstance(answer, Finished)
        assert (answer.reason, answer.message) == ("error", "no such thing")
        stats = await client.stats()
        assert not stats["lanes"]["rt"]["running"]
        assert (await collect(client, [5]))[1].reason == "length"
        await client.close()


async def test_whoever_stops_waiting_cancels_all_parts(tmp_path: Path) -> None:
    with running_engine(tmp_path, endless_runner()) as engine:
        client = await EngineClient.connect(engine.url)
        parts = [Part([70 + i % 100] * 1000, SCORES) for i in range(100)]
        asking = asyncio.create_task(client.ask([9] * 20_000, parts))

        async def is_running() -> bool:
            return bool((await client.stats())["lanes"]["rt"]["running"])

        async def is_idle() -> bool:
            lane = (await client.stats())["lanes"]["rt"]
            return not lane["running"] and not lane["waiting"]

        await wait_until(is_running)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await wait_until(is_idle)
        assert (await client.stats())["lanes"]["rt"]["finished"].get("abort", 0) > 0
        await client.close()


async def test_a_cancel_stays_one_while_the_connection_closes(tmp_path: Path) -> None:
    with running_engine(tmp_path, endless_runner()) as engine:
        client = await EngineClient.connect(engine.url)
        reading = asyncio.create_task(collect(client, [9] * 50_000))
        asking = asyncio.create_task(client.ask([9] * 50_000, [Part([5], SCORES)]))
        await asyncio.sleep(0)  # both are sent
        for task in (reading, asking):
            task.cancel()
        client.abort(EngineGone("it is gone"))
        for task in (reading, asking):
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_a_lost_connection_ends_the_waiting(tmp_path: Path) -> None:
    with running_engine(tmp_path, endless_runner()) as engine:
        client = await EngineClient.connect(engine.url)
        asking = asyncio.create_task(client.ask([9] * 50_000, [Part([5], SCORES)]))
        await asyncio.sleep(0)  # it is sent
        await client.close()
        with pytest.raises(EngineGone):
            await asking
