"""Constrained outputs equal transformers' own under the same masks, whatever else the engine does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from transformers import AutoTokenizer

from bros_batch.settings import DEMO_MODEL_DIR
from engine.core.kv.cache import KVOptions
from engine.core.terms import FinishReason, Grammar, Lane, SamplingParams
from engine.runner.torch_runner import TorchRunner
from tests.engine.runner.driver import load_runner
from tests.factories import Outputs, Steps, request, scheduler_for
from tests.factories_grammars import SCHEMAS, generated_under, schema_grammar
from tests.factories_models import make_model, make_tokenizer, own_model

MAX_TOKENS = 40


@dataclass
class Served:
    path: Path
    own: Any
    tokenizer: Any

    def prompts(self, number: int, seed: int = 0) -> list[list[int]]:
        rng = random.Random(seed)
        return [[rng.randrange(3, 250) for _ in range(rng.randint(3, 30))] for _ in range(number)]

    def text(self, token_ids: list[int]) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))


@pytest.fixture(scope="module", params=["demo", "llama", "gemma2"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    path = DEMO_MODEL_DIR
    if request.param != "demo":
        path = make_model(request.param, tmp_path_factory.mktemp(request.param))
        make_tokenizer(path)
    return Served(path, own_model(path), AutoTokenizer.from_pretrained(path))


def runner_of(served: Served, *, force: bool) -> TorchRunner:
    # Too few blocks for all requests at once, so they preempt each other.
    return load_runner(served.path, dtype="float32", num_kv_blocks=9, num_host_slots=64, max_model_len=128,
                       forced_tokens=force)  # fmt: skip


@pytest.fixture(scope="module")
def plain_runner(served: Served) -> Iterator[TorchRunner]:
    runner = runner_of(served, force=False)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def forcing_runner(served: Served) -> Iterator[TorchRunner]:
    runner = runner_of(served, force=True)
    yield runner
    runner.close()


def outputs_of(
    runner: TorchRunner, asked: list[tuple[list[int], SamplingParams]], *, ahead: bool, seed: int = 0
) -> list[tuple[list[int], FinishReason]]:
    """Computes the requests beside others of both lanes that have no grammar."""
    rng = random.Random(seed)
    scheduler = scheduler_for(
        runner.info, max_num_batched_tokens=64, options=KVOptions(num_host_slots=runner.info.num_host_slots)
    )
    outputs = Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    ids = []
    for prompt, sampling in asked:
        lane = rng.choice([Lane.BE, Lane.BE, Lane.RT])
        own = request(prompt, lane=lane, sampling=sampling)
        ids.append(own.request_id)
        scheduler.add(own)
        scheduler.add(
            request([9] * rng.randint(3, 20), lane=rng.choice(list(Lane)), max_tokens=rng.randint(1, 30))
        )
        for _ in range(rng.randint(0, 3)):
            steps.step()
    steps.run_to_end()
    assert all(end.message is None for end in outputs.finished.values())
    assert scheduler.allocator.num_preemptions > 0
    return [(outputs.token_ids[name], outputs.finished[name].reason) for name in ids]


def greedy(grammar: Grammar, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": MAX_TOKENS, "temperature": 0.0, "grammar": grammar, **fields})


def assert_valid(served: Served, schema: dict[str, Any], token_ids: list[int], reason: FinishReason) -> None:
    if reason is FinishReason.STOP:
        jsonschema.Draft202012Validator(schema).validate(json.loads(served.text(token_ids)))
    else:
        assert (reason, len(token_ids)) == (FinishReason.LENGTH, MAX_TOKENS)


@pytest.mark.parametrize("ahead", [False, True])
def test_greedy_outputs_equal_those_of_transformers_under_the_same_masks(
    served: Served, plain_runner: TorchRunner, ahead: bool
) -> None:
    grammars = [schema_grammar(schema) for schema in SCHEMAS]
    asked = list(zip(served.prompts(len(SCHEMAS)), map(greedy, grammars), strict=True))
    found = outputs_of(plain_runner, asked, ahead=ahead)
    for (prompt, _), schema, grammar, (token_ids, reason) in zip(
        asked, SCHEMAS, grammars, found, strict=True
    ):
        own = generated_under(served.own, plain_runner.grammars, grammar, prompt, MAX_TOKENS)
        assert token_ids == own, schema
        assert_valid(served, schema, token_ids, reason)


@pytest.mark.parametrize("ahead", [False, True])
def test_forced_tokens_leave_the_text_of_a_choice_as_it_is(
    served: Served, forcing_runner: TorchRunner, ahead: bool
) -> None:
    grammars = [schema_grammar(schema, compact=True) for schema in SCHEMAS]
    asked = list(zip(served.prompts(len(SCHEMAS), seed=1), map(greedy, grammars), strict=True))
    found = outputs_of(forcing_runner, asked, ahead=ahead)
    for schema, (token_ids, reason) in zip(SCHEMAS, found, strict=True):
        assert_valid(served, schema, token_ids, reason)
    assert forcing_runner.grammars.counts.num_forced_tokens > 0
    assert found == outputs_of(forcing_runner, asked, ahead=not ahead, seed=5)
