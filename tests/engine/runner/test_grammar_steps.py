"""Grammars beside the other parameters of a request, and when a row's grammar fails or the runner starts over."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from engine.core.events import TokenEvent
from engine.core.terms import FinishReason, Grammar, SamplingParams
from engine.runner.torch_runner import TorchRunner
from tests.engine.runner.driver import load_runner
from tests.factories import Outputs, Steps, request, scheduler_for
from tests.factories_grammars import schema_grammar
from tests.factories_models import make_model, make_tokenizer

EOS = 2
LETTERS = Grammar("regex", "[a-d]+")
FIXED = schema_grammar({"const": {"kind": "invoice", "pages": [1, 2, 3]}}, compact=True)
PERSON = schema_grammar(
    {
        "type": "object",
        "properties": {"first_name": {"enum": ["Ada", "Grace"]}, "is_author": {"type": "boolean"}},
        "required": ["first_name", "is_author"],
        "additionalProperties": False,
    },
    compact=True,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(make_model("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def plain(model: Path) -> Iterator[TorchRunner]:
    runner = load_runner(model, forced_tokens=False)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def forcing(model: Path) -> Iterator[TorchRunner]:
    runner = load_runner(model, forced_tokens=True)
    yield runner
    runner.close()


def sampling(grammar: Grammar, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 60, "temperature": 0.0, "grammar": grammar, **fields})


class Events(Outputs):
    """Also keeps log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.logprobs: dict[str, list[Any]] = {}

    def hear(self, events: Any) -> None:
        super().hear(events)
        for event in events:
            if isinstance(event, TokenEvent):
                self.logprobs.setdefault(event.request_id, []).append(event.logprobs)


class Run:
    """One request, computed alone."""

    def __init__(self, runner: TorchRunner, params: SamplingParams, *, ahead: bool = False) -> None:
        scheduler, events = scheduler_for(runner.info, max_num_batched_tokens=64), Events()
        own = request([5, 6, 7], sampling=params)
        scheduler.add(own)
        self.num_steps = 0
        steps = Steps(scheduler, runner, events, ahead=ahead)
        while scheduler.has_work or steps._under_way:
            steps.step()
            scheduler.check_integrity()
            self.num_steps += 1
        self.token_ids = events.token_ids[own.request_id]
        self.logprobs = events.logprobs[own.request_id]
        self.reason = events.finished[own.request_id].reason


def text_of(model: Path, token_ids: list[int]) -> str:
    return str(AutoTokenizer.from_pretrained(model).decode(token_ids, skip_special_tokens=True))


@pytest.mark.parametrize("ahead", [False, True])
def test_forced_tokens_take_fewer_steps_and_are_all_received(
    model: Path, plain: TorchRunner, forcing: TorchRunner, ahead: bool
) -> None:
    for grammar in (FIXED, PERSON):
        drawn, forced = (
            Run(runner, sampling(grammar, logprobs=2), ahead=ahead) for runner in (plain, forcing)
        )
        assert text_of(model, forced.token_ids) == text_of(model, drawn.token_ids)
        assert json.loads(text_of(model, forced.token_ids))
        assert forced.reason is drawn.reason is FinishReason.STOP
        assert forced.num_steps < drawn.num_steps / 2
        assert len(forced.logprobs) == len(forced.token_ids)
        for token_id, logprobs in zip(forced.token_ids, forced.logprobs, strict=True):
            assert math.isclose(logprobs.logprob, 0.0, abs_tol=1e-6) or len(logprobs.top) > 1
            assert token_id in dict(logprobs.top) or len(logprobs.top) == 2


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_forced_tokens_end_at_max_tokens(forcing: TorchRunner, max_tokens: int, ahead: bool) -> None:
    full = Run(forcing, sampling(FIXED), ahead=ahead).token_ids
    cut = Run(forcing, sampling(FIXED, max_tokens=max_tokens), ahead=ahead)
    assert cut.token_ids == full[:max_tokens]
    assert cut.reason is (FinishReason.LENGTH if max_tokens < len(full) else FinishReason.STOP)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("stop", ["voi", "pages", "e"])
def test_a_stop_string_ends_an_output_among_forced_tokens(
    model: Path, forcing: TorchRunner, stop: str, ahead: bool
) -> None:
    full = Run(forcing, sampling(FIXED), ahead=ahead).token_ids
    found = Run(forcing, sampling(FIXED, stop=(stop,)), ahead=ahead)
    assert found.reason is FinishReason.STOP
    assert stop in text_of(model, found.token_ids)
    assert stop not in text_of(model, found.token_ids[:-1])
    assert found.token_ids == full[: len(found.token_ids)]


def test_an_output_that_is_complete_at_max_tokens_has_stopped(plain: TorchRunner) -> None:
    grammar = Grammar("regex", "abc")
    full = Run(plain, sampling(grammar))
    assert full.token_ids[-1] == EOS
    exact = Run(plain, sampling(grammar, max_tokens=len(full.token_ids) - 1))
    assert (exact.token_ids, exact.reason) == (full.token_ids[:-1], FinishReason.STOP)


@pytest.mark.parametrize("ahead", [False, True])
def test_ignore_eos_goes_on_as_long_as_the_grammar_allows(
    model: Path, plain: TorchRunner, forcing: TorchRunner, ahead: bool
) -> None:
    for runner in (plain, forcing):
        endless = Run(runner, sampling(LETTERS, ignore_eos=True, max_tokens=20), ahead=ahead)
        assert (len(endless.token_ids), endless.reason) == (20, FinishReason.LENGTH)
        assert EOS not in endless.token_ids
        short = Run(runner, sampling(Grammar("regex", "[a-d]{3}"), ignore_eos=True), ahead=ahead)
        assert (len(text_of(model, short.token_ids)), short.reason) == (3, FinishReason.STOP)
        assert EOS not in short.token_ids


def test_min_tokens_forbids_the_end_unless_nothing_else_is_left(
    model: Path, plain: TorchRunner, forcing: TorchRunner
) -> None:
    bias = ((EOS, 100.0),)
    for runner in (plain, forcing):
        assert len(Run(runner, sampling(LETTERS, logit_bias=bias)).token_ids) == 2
        long = Run(runner, sampling(LETTERS, logit_bias=bias, min_tokens=9))
        assert (len(long.token_ids), long.reason) == (10, FinishReason.STOP)
        done = Run(runner, sampling(Grammar("regex", "[a-d]{2}"), min_tokens=9))
        assert (len(text_of(model, done.token_ids)), done.reason) == (2, FinishReason.STOP)


def test_a_bias_cannot_make_a_forbidden_token_likely(model: Path, plain: TorchRunner) -> None:
    bias = tuple((token_id, 100.0) for token_id in range(100, 320))
    found = Run(plain, sampling(LETTERS, logit_bias=bias, temperature=1.5, seed=3, frequency_penalty=1.0))
    assert set(text_of(model, found.token_ids)) <= set("abcd")


def test_log_probabilities_are_those_of_the_allowed_tokens(plain: TorchRunner) -> None:
    found = Run(plain, sampling(Grammar("regex", "(a|b)c"), logprobs=20))
    first = found.logprobs[0]
    assert 2 <= len(first.top) < 20  # a, b, and pairs of letters that begin so
    assert math.isclose(sum(math.exp(value) for _, value in first.top), 1.0, abs_tol=1e-4)
    assert all(math.isfinite(value) for _, value in first.top)
    assert math.isclose(found.logprobs[-1].logprob, 0.0, abs_tol=1e-6)  # only the end is left


@pytest.mark.parametrize("ahead", [False, True])
def test_seeded_outputs_do_not_depend_on_forced_tokens_of_others_or_the_mode(
    plain: TorchRunner, ahead: bool
) -> None:
    params = sampling(LETTERS, temperature=1.0, seed=11, max_tokens=25)
    alone = Run(plain, params)
    scheduler, outputs = scheduler_for(plain.info, max_num_batched_tokens=64), Outputs()
    own = request([5, 6, 7], sampling=params)
    for each in (request(max_tokens=30), own, request([9] * 20, sampling=sampling(PERSON))):
        scheduler.add(each)
    Steps(scheduler, plain, outputs, ahead=ahead).run_to_end()
    assert outputs.token_ids[own.request_id] == alone.token_ids


@pytest.mark.parametrize("ahead", [False, True])
def test_after_the_runner_started_over_outputs_go_on_as_they_would_have(
    forcing: TorchRunner, plain: TorchRunner, ahead: bool
) -> None:
    for runner in (forcing, plain):
        for grammar in (PERSON, LETTERS):
            expected = Run(runner, sampling(grammar, max_tokens=20)).token_ids
            for num_steps in range(1, 9):
                scheduler, outputs = scheduler_for(runner.info, max_num_batched_tokens=64), Outputs()
                own = request([5, 6, 7], sampling=sampling(grammar, max_tokens=20))
                scheduler.add(own)
                steps = Steps(scheduler, runner, outputs, ahead=ahead)
                for _ in range(num_steps):
                    steps.step()
                for _, pending in steps._under_way:
                    pending.result()
                steps._under_way.clear()
                scheduler.take_back()
                steps.run_to_end()
                assert outputs.token_ids[own.request_id] == expected


def test_a_grammar_that_cannot_be_followed_fails_its_row_only(plain: TorchRunner) -> None:
    scheduler, outputs = scheduler_for(plain.info, max_num_batched_tokens=64), Outputs()
    bad = request([5, 6, 7], sampling=sampling(Grammar("regex", "(")))
    good = request([5, 6, 7], sampling=sampling(LETTERS, max_tokens=6))
    scheduler.add(bad)
    scheduler.add(good)
    Steps(scheduler, plain, outputs).run_to_end()
    assert outputs.finished[bad.request_id].reason is FinishReason.ERROR
    assert "the grammar of this request" in (outputs.finished[bad.request_id].message or "")
    assert outputs.token_ids[good.request_id] == Run(plain, sampling(LETTERS, max_tokens=6)).token_ids


def test_a_model_without_an_end_token_stops_where_the_grammar_does(tmp_path: Path) -> None:
    path = make_tokenizer(make_model("qwen2", tmp_path, eos_token_id=None))
    for force in (False, True):
        runner = load_runner(path, forced_tokens=force)
        assert not runner.eos_token_ids
        done = Run(runner, sampling(Grammar("regex", "[a-d]{3}")))
        assert (len(text_of(path, done.token_ids)), done.reason) == (3, FinishReason.STOP)
        endless = Run(runner, sampling(LETTERS, max_tokens=20))
        assert set(text_of(path, endless.token_ids)) <= set("abcd")
        assert (len(endless.token_ids), endless.reason) == (20, FinishReason.LENGTH)
        runner.close()
