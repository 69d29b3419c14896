"""The engine continues when its runner restarts, and ends if restarting does not help."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.__main__ import make_runner
from engine.core.cost_model import CostModel
from engine.core.events import FinishedEvent
from engine.core.request import Request
from engine.core.terms import FinishReason, Lane
from engine.loop import EngineLoop
from engine.loop_messages import Add, Message, Stop
from engine.profiling import first_cost_model
from engine.runner.base import ModelRunner, RunnerRestarted
from engine.runner.ranks import parallel_runner, rank_group
from engine.runner.ranks.parallel_runner import ParallelRunner
from tests.engine.runner.ranks.short_rank import Shortage
from tests.engine.runner.ranks.stub_rank import ANSWER, DIE, EXIT_STATUS, OUT_OF_MEMORY, step
from tests.engine.runner.ranks.test_parallel_runner import NUM_OUTPUT, config_for, processes_of, prompts
from tests.engine.runner.test_exact import generate
from tests.factories import Outputs, RestartingRunner, request, scheduler_for
from tests.factories_models import make_model, own_model


def serve(
    runner: ModelRunner,
    requests: Sequence[Request],
    *,
    ahead: bool,
    after: Callable[[Outputs], None] = lambda _: None,
) -> Outputs:
    """Runs an engine's loop with these requests. Returns what their owners received; calls `after` after each send."""
    outputs, scheduler = Outputs(), scheduler_for(runner.info)
    to_come = list(requests)

    def receive(timeout_s: float | None) -> list[Message]:
        if len(outputs.finished) == len(requests):
            return [Stop()]
        assert to_come or timeout_s is not None, "the loop sleeps although requests are open"
        return [Add(to_come.pop(0))] if to_come else []  # one arrives per step

    def send(events: Sequence[Any]) -> None:
        outputs.hear(events)
        after(outputs)

    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 0.001
        return now_s

    EngineLoop(scheduler, runner, receive, send, clock, ahead=ahead).run()
    scheduler.check_integrity()
    assert not scheduler.has_work
    return outputs


def of_both_lanes(prompts: Sequence[Sequence[int]]) -> list[Request]:
    lanes = (Lane.RT, Lane.BE, Lane.BE)
    return [request(prompt, lane=lanes[i % 3], max_tokens=NUM_OUTPUT) for i, prompt in enumerate(prompts)]


def check_success(requests: Sequence[Request], outputs: Outputs, expected: Sequence[Sequence[int]]) -> None:
    assert [outputs.token_ids[one.request_id] for one in requests] == expected
    finished: list[FinishedEvent] = list(outputs.finished.values())
    assert all(event.reason in (FinishReason.LENGTH, FinishReason.STOP) for event in finished)


@pytest.mark.parametrize("ahead", [False, True])
def test_the_loop_continues_when_its_runner_has_lost_its_memory(ahead: bool) -> None:
    runner = RestartingRunner({0, 3, 4, 11, 17, 30}, num_blocks=24)
    requests = of_both_lanes([[3 + i] * (1 + 5 * i % 23) for i in range(12)])
    outputs = serve(runner, requests, ahead=ahead)
    assert runner.num_results > 30
    expected = [
        runner.runner.continuation(one.token_ids[: one.num_prompt_tokens], one.sampling) for one in requests
    ]
    check_success(requests, outputs, expected)


# Ranks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("restarts"))


def expected_of(path: Path) -> list[list[int]]:
    reference = own_model(path)
    return [generate(reference, prompt, NUM_OUTPUT) for prompt in prompts(1)]


@pytest.mark.slow
@pytest.mark.parametrize(("ahead", "number"), [(False, 0), (True, 1)])
def test_a_rank_is_killed_during_a_step_and_no_request_fails(llama: Path, ahead: bool, number: int) -> None:
    pytest.importorskip("accelerate")
    runner = make_runner(config_for(llama, num_kv_blocks=None, max_model_len=96))
    first = processes_of(runner)
    info = runner.info

    def kill_one(outputs: Outputs) -> None:
        num_tokens = sum(map(len, outputs.token_ids.values()))
        if num_tokens > 3 * NUM_OUTPUT and first[number].is_running():
            assert len(outputs.finished) < len(requests)
            first[number].send_signal(signal.SIGKILL)
            first[number].wait()

    requests = of_both_lanes(prompts(1))
    try:
        outputs = serve(runner, requests, ahead=ahead, after=kill_one)
        check_success(requests, outputs, expected_of(llama))
        assert runner.info == info
        assert not any(process.is_running() for process in first)
        assert all(process.is_running() for process in processes_of(runner))
    finally:
        runner.close()


@pytest.mark.slow
def test_passes_are_shorter_after_memory_ran_out_in_one(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    shortage = Shortage(str(tmp_path), most_tokens=20, is_hidden=True)
    shortage.tell(monkeypatch.setenv)
    monkeypatch.setattr(rank_group, "_PROGRAM", "tests.engine.runner.ranks.short_rank")
    runner = make_runner(config_for(llama))
    try:
        requests = of_both_lanes(prompts(1))
        check_success(requests, serve(runner, requests, ahead=True), expected_of(llama))
    finally:
        runner.close()
    too_long = [num_tokens for num_tokens in shortage.passes(1) if num_tokens > 20]
    assert len(too_long) == 1, "no pass of that size is tried again"


@pytest.fixture
def stubs(llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ParallelRunner]:
    """Two ranks without a model."""
    monkeypatch.setattr(rank_group, "_PROGRAM", "tests.engine.runner.ranks.stub_rank")
    runner = ParallelRunner(config_for(llama, num_kv_blocks=None))
    yield runner
    runner.close()


def test_restarted_ranks_have_as_much_memory_as_the_first_ones(stubs: ParallelRunner) -> None:
    info = stubs.info
    for _ in range(2):
        with pytest.raises(RunnerRestarted, match=f"rank 1 of 2 ended with status {EXIT_STATUS}"):
            stubs.execute(step(DIE))
        assert stubs.info == info
    assert stubs.execute(step(ANSWER)).sampled == [0]


def test_a_restart_drops_the_steps_under_way(stubs: ParallelRunner) -> None:
    first, _ = stubs.launch(step(DIE)), stubs.launch(step(ANSWER))
    with pytest.raises(RunnerRestarted):
        first.result()
    assert stubs.execute(step(ANSWER, 3)).sampled == [0]
    assert not stubs._group.results and not stubs._under_way


def test_after_several_failures_without_a_step_between_them_ranks_are_not_restarted(
    stubs: ParallelRunner,
) -> None:
    for _ in range(3):  # after one completed step the count starts again
        for _ in range(parallel_runner._MAX_FAILURES - 1):
            with pytest.raises(RunnerRestarted):
                stubs.execute(step(DIE))
        stubs.execute(step(ANSWER))
    with pytest.raises(ChildProcessError, match=f"status {EXIT_STATUS}.*that makes 3 failures in a row"):
        for _ in range(parallel_runner._MAX_FAILURES):
            with pytest.raises(RunnerRestarted):
                stubs.execute(step(DIE))
    assert all(rank.process.poll() is not None for rank in stubs._group.ranks)


def test_ranks_that_cannot_be_restarted_end_the_engine(
    stubs: ParallelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_them(_: Outputs) -> None:
        monkeypatch.setattr(rank_group, "_PROGRAM", "tests.runner.no_such_rank")
        stubs._group.ranks[1].process.kill()
        stubs._group.ranks[1].process.wait()

    started: list[int] = []
    start = rank_group.RankHandle.start
    monkeypatch.setattr(
        rank_group.RankHandle, "start", lambda one: (started.append(one.number), start(one))[1]
    )
    with pytest.raises(ChildProcessError, match=r"ended with status 1; .*that makes 3 failures in a row"):
        serve(stubs, [request([ANSWER] * 3)], ahead=True, after=break_them)
    assert started.count(0) == parallel_runner._MAX_FAILURES - 1
    assert all(rank.process.poll() is not None for rank in stubs._group.ranks)


def test_restarted_ranks_with_another_model_end_the_engine(
    stubs: ParallelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_RANK", "another")
    with pytest.raises(ChildProcessError, match="the restarted ranks have another model"):
        stubs.execute(step(DIE))
    assert all(rank.process.poll() is not None for rank in stubs._group.ranks)


def test_each_time_memory_runs_out_passes_are_halved(stubs: ParallelRunner) -> None:
    """It does not count as a failure while passes can be shortened."""
    for num_tokens, most_tokens in ((32, 16), (32, 8), (7, 3), (2, 1)):
        with pytest.raises(RunnerRestarted):
            stubs.execute(step(OUT_OF_MEMORY, num_tokens))
        assert stubs.execute(step(ANSWER)).sampled == [most_tokens]
    with pytest.raises(ChildProcessError, match="3 failures in a row"):
        for _ in range(parallel_runner._MAX_FAILURES):
            with pytest.raises(RunnerRestarted):
                stubs.execute(step(OUT_OF_MEMORY))


def test_a_runner_that_restarts_while_steps_are_measured_still_serves(tmp_path: Path) -> None:
    runner = RestartingRunner({4})
    cost = first_cost_model(
        str(tmp_path / "no model of this name"), runner, 32, 60.0, iter(range(99)).__next__
    )
    assert isinstance(cost, CostModel) and runner.num_results == 5
