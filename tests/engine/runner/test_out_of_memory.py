"""A step that does not fit into memory is computed in parts, with the same tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.core.plan import StepPlan
from engine.core.terms import Lane
from engine.runner.pass_limit import PassLimit
from engine.runner.step_arrays import StepArrays
from tests.engine.runner.driver import load_runner
from tests.factories import request, run_to_end, scheduler_for
from tests.factories_models import make_model


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_model("llama", tmp_path_factory.mktemp("oom"))


def outputs_of(runner) -> dict[str, list[int]]:
    scheduler = scheduler_for(runner.info, max_num_batched_tokens=96)
    for i in range(12):
        prompt = [(7 * i + j) % 300 + 3 for j in range(5 * i + 1)]
        scheduler.add(
            request(prompt, lane=Lane.RT if i % 4 == 0 else Lane.BE, max_tokens=9, request_id=f"{i}")
        )
    return run_to_end(scheduler, runner).token_ids


def short_of_memory(runner, most_tokens: int) -> list[int]:
    """Makes forward passes of more tokens fail as on a full GPU. Returns the lengths of all that are tried."""
    tried: list[int] = []
    forward = runner._forward.compute

    def limited(step):
        tried.append(len(step.token_ids))
        if tried[-1] > most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return forward(step)

    runner._forward.compute = limited
    return tried


def test_steps_are_halved_until_they_fit_and_outputs_stay_the_same(path):
    expected = outputs_of(load_runner(path))
    runner = load_runner(path)
    tried = short_of_memory(runner, 10)
    assert outputs_of(runner) == expected
    failed = [length for length in tried if length > 10]
    assert failed and failed == sorted(failed, reverse=True), (
        "no length that failed, nor a longer one, is tried again"
    )


def test_a_token_that_does_not_fit_by_itself_is_an_error(path):
    runner = load_runner(path)
    short_of_memory(runner, 0)
    with pytest.raises(torch.OutOfMemoryError):
        outputs_of(runner)


def test_halves_do_the_same_work_in_order():
    plan = StepPlan(
        rows=[4, 1, 3],
        starts=[9, 0, 5],
        counts=[1, 6, 2],
        samples=[True, True, False],
        token_ids=list(range(9)),
        slots=list(range(20, 29)),
    )
    pieces = [StepArrays.of(plan)]
    while any(len(piece.token_ids) > 1 for piece in pieces):
        pieces = [
            half for piece in pieces for half in (piece.halves() if len(piece.token_ids) > 1 else (piece,))
        ]
    assert [int(piece.token_ids[0]) for piece in pieces] == list(range(9))
    assert [int(piece.slots[0]) for piece in pieces] == list(range(20, 29))
    assert [int(piece.rows[0]) for piece in pieces] == [4] + [1] * 6 + [3] * 2
    assert [int(piece.starts[0]) for piece in pieces] == [9, 0, 1, 2, 3, 4, 5, 5, 6]
    assert [bool(piece.samples[0]) for piece in pieces] == [True] + [False] * 5 + [True] + [False] * 2
    assert all(np.array_equal(piece.counts, [1]) for piece in pieces)


def test_longer_steps_are_tried_again_after_a_while():
    limit = PassLimit()
    limit.ran_out(1000)
    assert limit.tokens == 500
    limit.ran_out(300)  # memory is still shorter
    for _ in range(2):
        before = limit.tokens
        computed_until_changed(limit)
        assert limit.tokens == 2 * before
    computed_until_changed(limit)
    assert limit.tokens >= 1000
    limit.ran_out(1200)
    assert limit.tokens == 600
    waits = []
    for _ in range(12):  # each failure doubles the wait, up to a limit
        waits.append(computed_until_changed(limit))
        limit.ran_out(1200)
    assert waits == sorted(waits) and waits[1] == 2 * waits[0] and waits[-1] == waits[-2]


def computed_until_changed(limit: PassLimit) -> int:
    before, num_passes = limit.tokens, 0
    while limit.tokens == before:
        limit.was_computed()
        num_passes += 1
        assert num_passes <= 1 << 17
    return num_passes


def test_a_limit_that_was_given_is_kept():
    limit = PassLimit(100)
    for _ in range(1000):
        limit.was_computed()
    assert limit.tokens == 100
    limit.ran_out(80)
    while limit.tokens < 80:
        computed_until_changed(limit)
    assert limit.tokens == 100
