"""Steps end at numbers of tokens that a GPU computes well."""

from dataclasses import replace

import pytest

from engine.__main__ import make_scheduler
from engine.config import EngineConfig
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.terms import Lane
from engine.core.trim import SIZE_STEP, trim_table, trimmed
from tests.factories import request, scheduler_for, simulated_runner


def in_waves(num_tokens: int, wave: int = 1024) -> float:
    """Seconds on a device that computes up to `wave` tokens at a time, and always for half a wave at least."""
    return 2.0 * (-(-num_tokens // wave)) if num_tokens > wave / 2 else 1.0


def times(max_tokens: int) -> list[float]:
    return [in_waves(size) for size in range(SIZE_STEP, max_tokens + 1, SIZE_STEP)]


def test_tokens_that_begin_another_wave_are_trimmed() -> None:
    table = trim_table(times(2048))
    assert [trimmed(table, n) for n in (1, 64, 1000, 1024, 2048)] == [1, 64, 1000, 1024, 2048]
    assert [trimmed(table, n) for n in (1025, 1088, 1150, 1152)] == [1024] * 4
    assert trimmed(table, 512 + 64) == 512  # with 64 tokens more, all would take twice as long
    assert [trimmed(table, n) for n in (640, 1300, 5000)] == [640, 1300, 5000]  # too much would be left out
    assert all(0.85 * n <= trimmed(table, n) + SIZE_STEP for n in range(1, 2048))


def test_a_small_difference_trims_nothing() -> None:
    assert not any(trim_table([1.0 + 0.001 * size for size in range(SIZE_STEP, 2049, SIZE_STEP)]))
    assert not any(trim_table([1.03 if i % 2 else 1.0 for i in range(32)]))
    assert [trimmed((), n) for n in (1, 1088)] == [1, 1088]


def test_the_engine_trims_by_the_table_of_its_runner() -> None:
    info = replace(simulated_runner().info, trims=trim_table(times(2048)))
    scheduler = make_scheduler(EngineConfig("m", "m", "unix:///unused"), info, None)
    assert scheduler.config.trims == info.trims != ()


def packed(scheduler: Scheduler, *requests: Request) -> list[int]:
    for each in requests:
        scheduler.add(each)
    return scheduler.schedule(0.0).counts


@pytest.mark.parametrize("lane", list(Lane))
def test_a_step_that_could_have_more_is_trimmed_and_one_that_could_not_is_whole(lane: Lane) -> None:
    table = trim_table(times(2048))
    info = simulated_runner(num_blocks=4000, max_model_len=4096, max_num_seqs=8).info

    def scheduler() -> Scheduler:
        return scheduler_for(replace(info, trims=table), max_num_batched_tokens=1100)

    def prompt(length: int) -> Request:
        return request([length] * length, lane=lane)  # none begins like another

    assert packed(scheduler(), prompt(3000)) == [1024]
    assert packed(scheduler(), prompt(600), prompt(3000)) == [600, 424]
    assert packed(scheduler(), prompt(1080)) == [1080]
    assert packed(scheduler(), prompt(1020), prompt(3000)) == [1020, 80]  # 4 tokens of it are not worth a row
