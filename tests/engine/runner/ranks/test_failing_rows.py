"""Ranks that compute together find out together whose an error is; an error of one rank alone restarts all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.__main__ import make_runner
from engine.core.terms import FinishReason
from engine.runner.base import RunnerRestarted
from engine.runner.ranks import rank_group
from tests.engine.runner.ranks.failing_rank import POISON
from tests.engine.runner.ranks.test_parallel_runner import NUM_OUTPUT, config_for, prompts
from tests.engine.runner.test_exact import generate
from tests.factories import Outputs, Steps, request, scheduler_for
from tests.factories_models import make_model, own_model

pytest.importorskip("accelerate", reason="transformers splits models only where accelerate is installed")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("failing"))


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
def test_a_row_that_fails_on_all_ranks_fails_alone(
    llama: Path, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILING_RANKS", "0,1")
    monkeypatch.setattr(rank_group, "_PROGRAM", "tests.engine.runner.ranks.failing_rank")
    runner = make_runner(config_for(llama))
    try:
        scheduler, outputs = scheduler_for(runner.info), Outputs()
        good = [request(prompt, max_tokens=NUM_OUTPUT) for prompt in prompts(5)[:6]]
        bad = [request(prompt, sampling=POISON) for prompt in prompts(6)[3:5]]
        for one in (good[0], bad[0], *good[1:4], bad[1], *good[4:]):
            scheduler.add(one)
        Steps(scheduler, runner, outputs, ahead=ahead).run_to_end()
    finally:
        runner.close()
    for one in bad:
        assert outputs.finished[one.request_id].reason is FinishReason.ERROR
        assert "IndexError" in (outputs.finished[one.request_id].message or "")
    reference = own_model(llama)
    for one, prompt in zip(good, prompts(5), strict=False):
        assert outputs.token_ids[one.request_id] == generate(reference, prompt, NUM_OUTPUT)


@pytest.mark.slow
def test_an_error_that_only_one_rank_has_restarts_all(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot compute the rows apart, because the others are in the middle of something else."""
    monkeypatch.setenv("FAILING_RANKS", "1")
    monkeypatch.setattr(rank_group, "_PROGRAM", "tests.engine.runner.ranks.failing_rank")
    runner = make_runner(config_for(llama))
    try:
        scheduler = scheduler_for(runner.info)
        for one in (request([5, 6, 7]), request([5, 8], sampling=POISON)):
            scheduler.add(one)
        with pytest.raises(RunnerRestarted, match="IndexError"):
            while True:
                plan = scheduler.schedule(0.0)
                scheduler.update(plan, runner.execute(plan), 0.0)
    finally:
        runner.close()
