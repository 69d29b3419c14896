"""A client on the engine's socket gets scores, log-probabilities and embeddings as transformers computes them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineRejected
from engine.wire.protocol import Finished, Tokens
from engine.wire.request_terms import LaneName, Sampling
from tests.engine.runner.driver import load_runner
from tests.engines import RunningEngine, running_engine
from tests.factories_models import VOCAB_SIZE, make_model, own_model

LANES: tuple[LaneName, ...] = ("rt", "be")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen3", tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def engine(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    runner = load_runner(model, max_num_batched_tokens=48)
    with running_engine(tmp_path_factory.mktemp("engine"), runner) as running:
        yield running


async def ask(
    client: EngineClient, prompt: list[int], sampling: Sampling, lane: LaneName
) -> tuple[list[int], Finished]:
    output: list[int] = []
    async with client.submit(prompt, sampling, lane=lane) as stream:
        async for message in stream:
            if isinstance(message, Tokens):
                output += message.ids
            else:
                return output, message
    raise AssertionError("the stream ended without an end")


async def test_answers_equal_those_of_transformers(engine: RunningEngine, model: Path) -> None:
    reference = own_model(model)
    rng = random.Random(1)
    document = [rng.randrange(3, VOCAB_SIZE) for _ in range(70)]
    prompts = [document + [rng.randrange(3, VOCAB_SIZE) for _ in range(9)] for _ in range(3)]
    labels = (5, 17, 300)
    client = await EngineClient.connect(engine.url)
    assert client.welcome.hidden_size == 64
    asked = [
        (prompt, lane, sampling)
        for prompt in prompts
        for lane in LANES
        for sampling in (
            Sampling(max_tokens=0, score_token_ids=labels),
            Sampling(max_tokens=0, prompt_logprobs=2),
            Sampling(max_tokens=0, pooling="mean"),
            Sampling(max_tokens=0, pooling="last"),
        )
    ]
    ends = await asyncio.gather(*(ask(client, prompt, sampling, lane) for prompt, lane, sampling in asked))
    for (prompt, _, sampling), (output, end) in zip(asked, ends, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            logprobs = reference(input_ids=ids).logits[0].double().log_softmax(-1)
            hidden = reference.base_model(input_ids=ids).last_hidden_state[0]
        assert output == []
        assert (end.reason, end.output_tokens, end.prompt_tokens) == ("length", 0, 79)
        if sampling.score_token_ids:
            assert end.scores == pytest.approx(logprobs[-1, list(labels)].tolist(), abs=1e-4)
            ours, theirs = (
                torch.tensor(each).softmax(-1) for each in (end.scores, logprobs[-1, list(labels)].tolist())
            )
            assert torch.allclose(ours, theirs, atol=1e-4)
        if sampling.prompt_logprobs is not None:
            assert end.prompt_logprobs is not None
            expected = [float(logprobs[i, token]) for i, token in enumerate(prompt[1:])]
            found_logprobs = list(end.prompt_logprobs.positions())
            assert [each.logprob for each in found_logprobs] == pytest.approx(expected, abs=1e-4)
            assert {len(each.top) for each in found_logprobs} == {2}
        if sampling.pooling is not None:
            assert end.embedding is not None
            expected_vector = (hidden.mean(0) if sampling.pooling == "mean" else hidden[-1]).numpy()
            found = np.frombuffer(end.embedding, dtype="<f4")
            assert np.linalg.norm(found - expected_vector) <= 1e-5 * np.linalg.norm(expected_vector)
    await client.close()


async def test_a_request_that_asks_for_nothing_is_rejected(engine: RunningEngine) -> None:
    client = await EngineClient.connect(engine.url)
    with pytest.raises(EngineRejected, match="must be at least 1, unless") as caught:
        await ask(client, [5, 6], Sampling(max_tokens=0), "rt")
    assert caught.value.param == "max_tokens"
    await client.close()
