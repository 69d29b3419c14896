"""Guarantee: steps are computed on the number of threads that is fastest while other processes take the CPU, and on all
threads while none do."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.thread_count import FIRST_PAUSE, LONGEST_PAUSE, WINDOW_STEPS, ThreadCount, cpu_times_s


@dataclass
class Machine:
    """A machine that steps run on: `slowdowns[n]` with n threads; the main thread waits for a share of the time."""

    slowdowns: dict[int, float]
    waiting_share: float | None = 0.0
    now_s: float = 0.0
    used: list[int] = field(default_factory=list)
    waited_s: float = 0.0
    ran_s: float = 0.0

    def threads(self, most: int) -> ThreadCount:
        return ThreadCount(most, self.used.append, lambda: self.now_s, self.cpu_times)

    def cpu_times(self) -> tuple[float, float] | None:
        return None if self.waiting_share is None else (self.ran_s, self.waited_s)

    def run(self, threads: ThreadCount, num_steps: int) -> list[int]:
        """Run steps of at least 50 ms and return the number of threads of each."""
        counts = []
        for _ in range(num_steps):
            slowdown = self.slowdowns[threads.count]
            step_s = 0.05 * slowdown
            share = self.waiting_share or 0.0
            self.now_s += step_s
            self.ran_s += step_s * (1 - share)
            self.waited_s += step_s * share
            counts.append(threads.count)
            threads.after_step(step_s, 0.05)
        return counts


CALM = {1: 3.6, 2: 1.9, 4: 1.0}
BUSY = {1: 9.0, 2: 20.0, 4: 60.0}


def test_fewer_threads_compute_while_the_cpu_is_busy_and_all_of_them_afterwards():
    machine = Machine(CALM)
    threads = machine.threads(4)
    assert set(machine.run(threads, 200)) == {4}
    machine.slowdowns, machine.waiting_share = BUSY, 0.8
    assert machine.run(threads, 12 * WINDOW_STEPS)[-1] == 1
    assert set(machine.run(threads, 500)) == {1}
    machine.slowdowns, machine.waiting_share = CALM, 0.0
    assert machine.run(threads, 12 * WINDOW_STEPS)[-1] == 4
    assert machine.used == [2, 1, 2, 4]


def test_all_threads_remain_where_fewer_are_slower_and_trials_become_rare():
    machine = Machine({1: 9.0, 2: 4.0, 4: 2.0}, waiting_share=0.6)
    counts = machine.run(machine.threads(4), 4000)
    assert set(counts) == {2, 4}
    assert counts[-LONGEST_PAUSE * WINDOW_STEPS :].count(2) <= 2 * WINDOW_STEPS


def test_a_trial_in_vain_does_not_delay_one_in_the_other_direction():
    machine = Machine(BUSY, waiting_share=0.8)
    threads = machine.threads(4)
    machine.run(threads, 16 * WINDOW_STEPS)
    assert threads.count == 1
    machine.waiting_share, machine.slowdowns = 0.0, {1: 1.0, 2: 1.0, 4: 1.0}  # free, but two are no faster
    machine.run(threads, 3 * WINDOW_STEPS)
    machine.slowdowns, machine.waiting_share = CALM, 0.0
    machine.run(threads, (4 * FIRST_PAUSE + 16) * WINDOW_STEPS)
    assert threads.count == 4


@pytest.mark.parametrize("share", [None, 0.2])
def test_nothing_is_tried_without_knowledge_or_on_a_machine_that_is_hardly_busy(share):
    machine = Machine(BUSY, waiting_share=share)
    machine.run(machine.threads(4), 200)
    assert machine.used == []


@settings(max_examples=200, deadline=None)
@given(
    slowdowns=st.lists(st.floats(0.1, 100), min_size=4, max_size=4),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=6),
)
def test_the_number_stays_between_one_and_all(slowdowns, shares):
    machine = Machine(dict(zip([1, 2, 4, 8], slowdowns, strict=True)))
    threads = machine.threads(8)
    for share in shares:
        machine.waiting_share = share
        machine.run(threads, 40)
    assert set(machine.used) <= {1, 2, 4, 8}


def test_the_times_of_a_thread_that_computes_grow():
    before = cpu_times_s()
    if before is None:
        pytest.skip("this operating system does not say how long a thread has waited for a CPU")
    while (now := cpu_times_s()) is not None and now[0] == before[0]:
        sum(range(100_000))
    assert now is not None
    assert now[0] > before[0]
    assert now[1] >= before[1]
