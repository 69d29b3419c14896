"""An error in a step fails the rows that raise it, and leaves no trace in the others."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.events import FinishedEvent
from engine.core.plan import StepPlan, StepResult
from engine.core.terms import FinishReason, Lane, SamplingParams
from engine.loop import EngineLoop
from engine.loop_messages import Add, Stop
from engine.runner.base import DoneStep
from engine.runner.simulated import SimulatedRunner
from engine.runner.torch_runner import TorchRunner
from tests.engine.runner.driver import load_runner
from tests.factories import Outputs, Steps, request, runner_info, scheduler_for
from tests.factories_models import VOCAB_SIZE, make_model, make_tokenizer

KINDS = ("start", "forward", "draw", "stop")
SAMPLINGS: Sequence[dict[str, Any]] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.7, "frequency_penalty": 0.3},
    {"temperature": 1.0, "seed": 11},
    {"temperature": 0.8, "seed": 12, "top_p": 0.7, "presence_penalty": 0.8},
    {"temperature": 1.0, "seed": 13, "stop": ("a", "e", "Q")},
    {"temperature": 1.0, "seed": 14, "stop_token_ids": tuple(range(100, 140)), "min_tokens": 4},
    {"temperature": 1.0, "seed": 15, "logprobs": 2, "top_k": 30, "logit_bias": ((9, 4.0),)},
)


class Panic(BaseException):
    """What a Rust library raises when it panics is no Exception either."""


class Poison:
    """Makes steps of a runner raise an error if they compute certain requests, by id: the kind of error and the number
    of output tokens that come before it."""

    def __init__(self, runner: TorchRunner, kinds: Mapping[str, tuple[str, int]]) -> None:
        self._runner = runner
        self._kinds = kinds
        self._rows: dict[int, tuple[str, int]] = {}  # of poisoned requests
        self._num_prompt: dict[int, int] = {}
        self._start_row, self._forward = runner._rows.start, runner._forward.compute
        self._draw, self._start = runner._sampler.draw, runner._sampling.start
        runner._rows.start = self.start_row  # type: ignore[method-assign]
        runner._forward.compute = self.forward  # type: ignore[method-assign]
        runner._sampler.draw = self.draw  # type: ignore[method-assign]
        runner._sampling.start = self.start  # type: ignore[method-assign]

    def remove(self) -> None:
        runner: Any = self._runner
        for owner, name in (
            (runner._rows, "start"),
            (runner._forward, "compute"),
            (runner._sampler, "draw"),
            (runner._sampling, "start"),
        ):
            delattr(owner, name)

    def start_row(self, start: Any) -> None:
        self._rows.pop(start.row, None)
        if start.request_id in self._kinds:
            self._rows[start.row] = self._kinds[start.request_id]
            self._num_prompt[start.row] = start.num_prompt_tokens
        self._start_row(start)
        strings = self._runner._stop._rules[start.row].strings
        if strings is not None and start.request_id in self._kinds:
            strings._text._decode = self.panicking(strings._text._decode, self._kinds[start.request_id])

    @staticmethod
    def panicking(decode: Callable[..., str], poison: tuple[str, int]) -> Callable[..., str]:
        num_calls = 0

        def decode_or_panic(token_ids: Sequence[int]) -> str:
            nonlocal num_calls
            num_calls += 1
            if poison[0] == "stop" and num_calls > poison[1]:
                raise Panic("range end index 9 out of range for slice of length 8")
            return decode(token_ids)

        return decode_or_panic

    def start(self, start: Any) -> None:
        self._start(start)  # an error may come when half of the work is done
        if self._rows.get(start.row, ("", 0))[0] == "start":
            raise OverflowError("Python int too large to convert to C long")

    def forward(self, step: Any) -> torch.Tensor:
        logits = self._forward(step)
        rows, positions = step.token_rows.tolist(), step.positions.tolist()
        if any(self.is_due("forward", row, at + 1) for row, at in zip(rows, positions, strict=True)):
            for cache in (
                self._runner._forward._caches.values()
            ):  # it has written something, but not what it should have
                cache.k[step.layout.slot_mapping] = torch.nan
                cache.v[step.layout.slot_mapping] = torch.nan
            raise RuntimeError("shape '[1, 2]' is invalid for input of size 3")
        return logits

    def draw(
        self, logits: torch.Tensor, rows: Any, num_outputs: Any, masks: Any = None, earlier: Any = None
    ) -> Any:
        pending = self._draw(logits, rows, num_outputs, masks, earlier)
        ends = [self._num_prompt.get(row, 0) + n for row, n in zip(rows.tolist(), num_outputs, strict=True)]
        if any(self.is_due("draw", row, end) for row, end in zip(rows.tolist(), ends, strict=True)):
            raise IndexError("index 151645 is out of bounds for dimension 0 with size 1536")
        return pending

    def is_due(self, kind: str, row: int, num_tokens: int) -> bool:
        poison = self._rows.get(row)
        return poison is not None and poison[0] == kind and num_tokens - self._num_prompt[row] >= poison[1]


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    path = make_model("llama", tmp_path_factory.mktemp("failing"))
    make_tokenizer(path)
    return load_runner(path, num_kv_blocks=12, max_model_len=128, num_host_slots=64)


@dataclass(frozen=True)
class Asked:
    prompt: list[int]
    sampling: SamplingParams
    lane: Lane


def serve(runner: TorchRunner, asked: Mapping[str, Asked], *, ahead: bool) -> Outputs:
    scheduler, outputs = scheduler_for(runner.info, max_num_batched_tokens=48), Outputs()
    for name, one in asked.items():
        scheduler.add(request(one.prompt, lane=one.lane, sampling=one.sampling, request_id=name))
    Steps(scheduler, runner, outputs, ahead=ahead).run_to_end()
    return outputs


def requests_of(rng: random.Random, count: int) -> dict[str, Asked]:
    """Some begin with the same tokens, so that they find each other's blocks in the prefix cache."""
    shared = [rng.randrange(3, VOCAB_SIZE) for _ in range(40)]
    asked = {}
    for i in range(count):
        own = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 20))]
        prompt = shared[: rng.choice([0, 0, 17, 33])] + own
        fields = {"max_tokens": rng.randint(1, 20), "ignore_eos": rng.random() < 0.5, **rng.choice(SAMPLINGS)}
        asked[f"{i}"] = Asked(prompt, SamplingParams(**fields), rng.choice(list(Lane)))
    return asked


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 14), st.integers(0, 6))
def test_only_poisoned_rows_fail_and_the_others_are_exact(runner, seed, ahead, count, num_poisoned):
    rng = random.Random(seed)
    asked = requests_of(rng, count)
    expected = serve(runner, asked, ahead=False)
    chosen = rng.sample(sorted(asked), min(num_poisoned, count))
    kinds = {name: (rng.choice(KINDS), rng.randint(0, 8)) for name in chosen}
    poison = Poison(runner, kinds)
    try:
        outputs = serve(runner, asked, ahead=ahead)
    finally:
        poison.remove()
    for name in asked:
        reason = outputs.finished[name].reason
        got, right = outputs.token_ids.get(name, []), expected.token_ids[name]
        if reason is FinishReason.ERROR:
            assert name in kinds, outputs.finished[name].message
            assert got == right[: len(got)]
            assert "could not compute this request" in (outputs.finished[name].message or "")
        else:
            assert (got, reason) == (right, expected.finished[name].reason)
        kind, num_before = kinds.get(name, ("", 0))
        if kind == "start" or (kind in ("draw", "forward") and num_before < len(right)):
            assert reason is FinishReason.ERROR, "the poison was due"


def test_an_error_of_the_device_is_not_put_down_to_requests(runner):
    """When not even a token for nobody can be computed, no request fails: the error goes to the caller."""
    asked = requests_of(random.Random(1), 5)
    forward, num_passes = runner._forward.compute, 0

    def breaking(step):
        nonlocal num_passes
        num_passes += 1
        if num_passes > 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return forward(step)

    runner._forward.compute = breaking
    try:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            serve(runner, asked, ahead=False)
    finally:
        del runner._forward.compute


def test_a_stop_token_outside_of_the_vocabulary_changes_no_other_row(runner):
    """Without the check, its place in the packed logits would be that of another row's token."""
    good = {
        f"{i}": Asked([5, 6, 7 + i], SamplingParams(max_tokens=8, temperature=0.0), Lane.BE) for i in range(4)
    }
    expected = serve(runner, good, ahead=False)
    beyond = tuple(VOCAB_SIZE + expected.token_ids["1"][i] for i in range(3))
    bad = SamplingParams(max_tokens=8, min_tokens=5, temperature=0.0, stop_token_ids=(*beyond, 151_645))
    outputs = serve(runner, {"bad": Asked([5, 6], bad, Lane.BE), **good}, ahead=False)
    assert "stop_token_ids" in (outputs.finished.pop("bad").message or "")
    assert outputs.token_ids == expected.token_ids


def test_an_error_while_tokens_are_received_fails_the_step(runner, monkeypatch):
    """It cannot be told whose it is. Later steps go on."""
    asked = requests_of(random.Random(2), 3)
    step = runner.launch(StepPlan([], [], [], [], [], []))
    del step
    from engine.runner.sampling import sampler

    collect, num_calls = sampler.PendingDraw.collect, 0

    def failing(self):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            raise struct_error
        return collect(self)

    struct_error = ValueError("cannot reshape array of size 3 into shape (2,newaxis)")
    monkeypatch.setattr(sampler.PendingDraw, "collect", failing)
    outputs = serve(runner, asked, ahead=False)
    reasons = [event.reason for event in outputs.finished.values()]
    assert FinishReason.ERROR in reasons and len(reasons) == 3
    again = serve(runner, asked, ahead=False)
    assert FinishReason.ERROR not in [event.reason for event in again.finished.values()]


# The core and the loop ---------------------------------------------------------------------------------------------


class FailingRunner(SimulatedRunner):
    """Fails certain requests, by id, in the step that computes this token of theirs; with `loses_kv`, the slots of the
    failed rows then hold garbage."""

    def __init__(self, info: Any, due: Mapping[str, int], *, loses_kv: bool) -> None:
        super().__init__(info)
        self._due = due
        self._loses_kv = loses_kv

    def launch(self, plan: StepPlan) -> Any:
        result = super().launch(plan).result()
        failed, offset = {}, 0
        for i, row in enumerate(plan.rows):
            slots = plan.slots[offset : offset + plan.counts[i]]
            offset += plan.counts[i]
            start = self._row_start[row]
            assert start is not None
            if plan.starts[i] + plan.counts[i] > self._due.get(start.request_id, 1 << 30):
                failed[i] = "IndexError: index 7 is out of bounds"
                if self._loses_kv:
                    for slot in slots:
                        self._entries[slot] = 12345
                    self._drawn[row] = 77
        sampled = [-1 if i in failed else token for i, token in enumerate(result.sampled)]
        stopped = [i not in failed and stop for i, stop in enumerate(result.stopped)]
        return DoneStep(StepResult(sampled, stopped, {}, failed, bool(failed) and self._loses_kv))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.booleans(), st.integers(12, 40))
def test_whatever_row_fails_in_a_step_the_others_are_exact(seed, ahead, loses_kv, num_blocks):
    rng = random.Random(seed)
    info = runner_info(num_blocks=num_blocks, max_num_seqs=5, max_model_len=48)
    prompts = {f"{i}": [rng.choice([3, 4])] * rng.randint(1, 25) for i in range(12)}
    due = {name: rng.randrange(30) for name in rng.sample(sorted(prompts), 4)}
    runner = FailingRunner(info, due, loses_kv=loses_kv)
    scheduler, outputs = scheduler_for(info), Outputs()
    steps = Steps(scheduler, runner, outputs, ahead=ahead)
    asked = {}
    for name, prompt in prompts.items():
        asked[name] = request(
            prompt,
            lane=rng.choice(list(Lane)),
            max_tokens=rng.randint(1, 15),
            ignore_eos=False,
            request_id=name,
        )
        asked[name].is_suspect = rng.random() < 0.2
        scheduler.add(asked[name])
        for _ in range(rng.randint(0, 3)):
            steps.step()
            scheduler.check_integrity()
    steps.run_to_end()
    for name, one in asked.items():
        right = runner.continuation(prompts[name], one.sampling)
        got, event = outputs.token_ids.get(name, []), outputs.finished[name]
        if event.reason is FinishReason.ERROR:
            assert name in due and got == right[: len(got)]
        else:
            assert got == right
            assert len(prompts[name]) + len(right) <= due.get(name, 1 << 30) + 1
    assert scheduler.kv.num_free_blocks == scheduler.kv.num_blocks


def run_loop(
    runner: Any, requests: Sequence[Any], *, ahead: bool, mark: Any = None
) -> tuple[EngineLoop, Outputs]:
    outputs, scheduler = Outputs(), scheduler_for(runner.info)
    to_come = list(requests)

    def receive(timeout_s: float | None) -> list[Any]:
        if len(outputs.finished) == len(requests):
            return [Stop()]
        return [Add(to_come.pop(0))] if to_come else []

    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 0.001
        return now_s

    loop = EngineLoop(scheduler, runner, receive, outputs.hear, clock, ahead=ahead, mark=mark)  # type: ignore[arg-type]
    loop.run()
    scheduler.check_integrity()
    return loop, outputs


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("loses_kv", [False, True])
def test_the_loop_logs_and_counts_each_failure_and_goes_on(ahead, loses_kv, caplog):
    runner = FailingRunner(runner_info(), {"bad-0": 0, "bad-1": 9}, loses_kv=loses_kv)
    names = ["bad-0", "good-0", "bad-1", "good-1", "good-2"]
    requests = [request([5, 6, 7 + i], max_tokens=12, request_id=name) for i, name in enumerate(names)]
    with caplog.at_level(logging.ERROR):
        loop, outputs = run_loop(runner, requests, ahead=ahead)
    for one in requests:
        finished: FinishedEvent = outputs.finished[one.request_id]
        assert (finished.reason is FinishReason.ERROR) == one.request_id.startswith("bad")
        if not one.request_id.startswith("bad"):
            prompt = one.token_ids[: one.num_prompt_tokens]
            assert outputs.token_ids[one.request_id] == runner.continuation(prompt, one.sampling)
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if "bad-0" in line and "IndexError" in line]
    assert len(lines) == 2
    assert loop.metrics.snapshot(loop.scheduler, loop.runner.grammars.counts)["step_failures"] == 2


@pytest.mark.parametrize("ahead", [False, True])
def test_a_suspect_is_computed_in_passes_of_its_own_which_the_mark_names(ahead):
    marks: list[tuple[tuple[str, ...], bool]] = []
    passes: list[tuple[set[str], tuple[tuple[str, ...], bool]]] = []

    class Noting(SimulatedRunner):
        def launch(self, plan: StepPlan) -> Any:
            step = super().launch(plan)
            names = {start.request_id for row in plan.rows if (start := self._row_start[row])}
            passes.append((names, marks[-1]))
            return step

    runner = Noting(runner_info())
    lanes = {
        "chat": Lane.RT,
        "bulk-0": Lane.BE,
        "suspect-0": Lane.BE,
        "bulk-1": Lane.BE,
        "suspect-1": Lane.BE,
    }
    requests = [
        request([5, 6, 7 + i] * 7, lane=lane, max_tokens=12, request_id=name)
        for i, (name, lane) in enumerate(lanes.items())
    ]
    for one in requests:
        one.is_suspect = one.request_id.startswith("suspect")

    def mark(names: Sequence[str], is_apart: bool) -> None:
        marks.append((tuple(names), is_apart))

    _, outputs = run_loop(runner, requests, ahead=ahead, mark=mark)
    for one in requests:
        prompt = one.token_ids[: one.num_prompt_tokens]
        assert outputs.token_ids[one.request_id] == runner.continuation(prompt, one.sampling)
    assert any(len(names) == 3 for names, _ in passes)
    for names, (marked, is_apart) in passes:
        if any(name.startswith("suspect") for name in names):
            assert len(names) == 1 and set(marked) == names and is_apart
        else:
            assert names - {"chat"} <= set(marked) and not is_apart and "chat" not in marked
    assert marks[-1] == ((), False)


def test_an_error_of_one_message_concerns_only_that_message(monkeypatch, caplog):
    runner = SimulatedRunner(runner_info())
    bad, good = request([5, 6], request_id="bad"), request([5, 7], request_id="good")
    bad.priority = "high"  # type: ignore[assignment]  # its sort key cannot be computed
    _, outputs = run_loop(runner, [bad, good], ahead=False)
    assert outputs.finished["bad"].reason is FinishReason.ERROR
    assert "TypeError" in (outputs.finished["bad"].message or "")
    assert outputs.token_ids["good"] == runner.continuation([5, 7], good.sampling)


@pytest.mark.parametrize("ahead", [False, True])
def test_planning_that_fails_once_starts_over_and_twice_ends_the_loop(ahead, monkeypatch):
    runner = SimulatedRunner(runner_info())
    requests = [request([5, 6, 7 + i], max_tokens=12) for i in range(5)]
    from engine.core.policy.bros import BrosPolicy

    decode, num_calls = BrosPolicy._decode, 0
    failing: set[int] = {20}

    def sometimes(self, *args, **options):
        nonlocal num_calls
        decode(self, *args, **options)
        num_calls += 1
        if num_calls in failing:
            raise AssertionError("a row is lost")

    monkeypatch.setattr(BrosPolicy, "_decode", sometimes)
    _, outputs = run_loop(runner, requests, ahead=ahead)
    for one in requests:
        prompt = one.token_ids[: one.num_prompt_tokens]
        assert outputs.token_ids[one.request_id] == runner.continuation(prompt, one.sampling)
    failing |= set(range(num_calls + 10, num_calls + 20))
    again = [request([5, 6, 7 + i], max_tokens=12) for i in range(5)]
    with pytest.raises(AssertionError, match="a row is lost"):
        run_loop(runner, again, ahead=ahead)


def test_a_plan_taken_apart_is_the_same_computation():
    plan = StepPlan(
        rows=[4, 1, 3],
        starts=[9, 0, 5],
        counts=[1, 6, 2],
        samples=[True, True, False],
        token_ids=list(range(9)),
        slots=list(range(20, 29)),
    )
    rest, only = plan.without({1}), plan.only(1)
    assert (rest.rows, rest.starts, rest.counts, rest.samples) == ([4, 3], [9, 5], [1, 2], [True, False])
    assert (rest.token_ids, rest.slots) == ([0, 7, 8], [20, 27, 28])
    assert (only.rows, only.token_ids, only.slots) == ([1], [1, 2, 3, 4, 5, 6], list(range(21, 27)))
    result = StepResult([-1] * 3, [False] * 3)
    result.take_in(StepResult([8, -1], [True, False], failed={1: "lost"}, lost_kv=True), [0, 2])
    result.take_in(StepResult([9], [False]), [1])
    assert result == StepResult([8, 9, -1], [True, False, False], {}, {2: "lost"}, True)
    assert np.all(np.array(result.sampled) == [8, 9, -1])
