"""Guarantee: greedy output equals transformers' `generate` token for token, under any concurrent load."""

from __future__ import annotations

import asyncio
import random

import pytest

from engine.config import EngineConfig
from engine.runner.loading import load_runner
from engine.wire.client import EngineClient
from engine.wire.protocol import Tokens
from engine.wire.request_terms import Sampling
from tests.engines import running_engine
from tests.factories_models import VOCAB_SIZE, generated, make_model, own_model

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2")
NUM_REQUESTS = 30
MAX_LEN = 160


async def answered(url: str, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
    """Send all requests at once, the last third as chats, which find memory full, and return the outputs."""
    client = await EngineClient.connect(url)

    async def one(i: int) -> list[int]:
        token_ids: list[int] = []
        sampling = Sampling(max_tokens=max_tokens[i], temperature=0.0)
        lane = "rt" if i >= 2 * NUM_REQUESTS // 3 else "be"
        async with client.submit(prompts[i], sampling, lane=lane) as stream:
            async for message in stream:
                if isinstance(message, Tokens):
                    token_ids += message.ids
        return token_ids

    outputs = await asyncio.gather(*(one(i) for i in range(len(prompts))))
    await client.close()
    return outputs


@pytest.mark.parametrize("family", FAMILIES)
async def test_thirty_concurrent_requests_equal_generate(tmp_path, family):
    """Memory holds a sixth of the load and a step 48 tokens, so prompts are chunked and bulk is truncated."""
    model_path = make_model(family, tmp_path)
    rng = random.Random(family)
    prompts = [
        [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.choice([1, 2, 7, 16, 33, 60, 90]))]
        for _ in range(NUM_REQUESTS)
    ]
    max_tokens = [rng.randint(1, 40) for _ in prompts]
    config = EngineConfig(
        model=str(model_path),
        served_model_name="tiny",
        listen="unused",
        device="cpu",
        dtype="float32",
        max_model_len=MAX_LEN,
        max_num_seqs=16,
        num_kv_blocks=32,
        block_size=8,
    )
    with running_engine(tmp_path, load_runner(config), max_num_batched_tokens=48, max_num_seqs=16) as engine:
        outputs = await answered(engine.url, prompts, max_tokens)
        assert engine.scheduler.allocator.num_preemptions > 0, (
            "nothing was preempted, so memory was never scarce"
        )
        engine.scheduler.check_integrity()
    model = own_model(model_path)
    expected = [generated(model, prompt, count) for prompt, count in zip(prompts, max_tokens, strict=True)]
    assert len({tuple(o) for o in expected}) > NUM_REQUESTS // 2, "the model must give different answers"
    for i in range(NUM_REQUESTS):
        assert outputs[i] == expected[i], f"request {i}"
