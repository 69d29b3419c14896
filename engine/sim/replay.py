"""Replays a load on a virtual clock: the real loop, scheduler and KV bookkeeping around a simulated device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from engine.config import reserved_rt_rows
from engine.core.config import DEFAULT_SLO, SchedulerConfig
from engine.core.kv.cache import KVCacheManager, KVOptions
from engine.core.scheduler import Scheduler
from engine.core.terms import SLO, Checkpoint, Policy, Preemption
from engine.loop import EngineLoop
from engine.runner.base import RunnerInfo
from engine.sim.clock import VirtualClock
from engine.sim.device import NEVER, Device, Slowdown
from engine.sim.feed import Feed, Limits
from engine.sim.report import Report, report_of
from engine.sim.trace_runner import TraceRunner
from engine.sim.traces.arrival import Arrival

BLOCK_SIZE = 16
# Reference counts suffice to free requests. Searching for reference cycles among them takes 6% of the time.
GC_THRESHOLD = 100_000
NOTHING: Callable[[], Iterator[Arrival]] = lambda: iter(())  # noqa: E731  # a load without that lane


@dataclass(frozen=True, slots=True)
class Setup:
    """One engine: its device and the settings of its scheduler, with the defaults of `EngineConfig`."""

    device: Device
    policy: Policy = Policy.BROS
    slo: SLO = DEFAULT_SLO
    be_share: float = 0.05
    prefix_cache: bool = False
    noise: float = 0.05
    seed: int = 0
    slowdown: Slowdown = NEVER

    def scheduler(self) -> Scheduler:
        """Make the scheduler. The baselines do not share blocks, and recompute whatever was preempted."""
        device = self.device
        config = SchedulerConfig(
            max_num_seqs=device.max_num_seqs,
            max_model_len=device.max_model_len,
            max_num_batched_tokens=device.max_num_batched_tokens,
            reserved_rt_rows=reserved_rt_rows(device.max_num_seqs),
            policy=self.policy,
            default_slo=self.slo,
            be_share=self.be_share,
        )
        is_bros = self.policy is Policy.BROS
        options = KVOptions(
            sharing=is_bros,
            preemption=Preemption.TRUNCATE if is_bros else Preemption.WHOLE,
            checkpoint=Checkpoint.LAZY if is_bros else Checkpoint.NONE,
            prefix_cache=self.prefix_cache,
            num_host_slots=device.host_tokens if is_bros else 0,
        )
        return Scheduler(config, KVCacheManager(device.kv_tokens // BLOCK_SIZE, BLOCK_SIZE, options))


@dataclass(frozen=True, slots=True)
class Load:
    """The requests that arrive.

    `rt` and `be` are called once per replay and return arrivals in order of time. No output is longer than
    `most_output_tokens`; the `max_tokens` of all requests is twice that.
    """

    rt: Callable[[], Iterator[Arrival]]
    be: Callable[[], Iterator[Arrival]]
    limits: Limits
    most_output_tokens: int


class Replay:
    """A replay of one load on one engine."""

    def __init__(self, setup: Setup, load: Load) -> None:
        device = setup.device
        self.setup = setup
        self.clock = VirtualClock()
        self.scheduler = setup.scheduler()
        self.feed = Feed(
            self.clock, load.rt(), load.be(), load.limits, setup.slo, max_tokens=2 * load.most_output_tokens
        )
        info = RunnerInfo(
            num_blocks=self.scheduler.kv.num_blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=device.max_num_seqs,
            max_model_len=device.max_model_len,
            vocab_size=1 << 20,
            device=device.name,
            dtype="none",
            num_host_slots=self.scheduler.kv.host.num_slots,
        )
        self.runner = TraceRunner(
            info,
            device.cost,
            self.clock,
            self.feed.output_tokens,
            noise=setup.noise,
            seed=setup.seed,
            slowdown=setup.slowdown,
        )
        self.loop = EngineLoop(self.scheduler, self.runner, self.feed.receive, self.feed.send, self.clock)

    def run(self) -> Report:
        """Run until the load ends. Raises engine.sim.feed.Stuck if the engine stops while it has work."""
        thresholds = gc.get_threshold()
        gc.set_threshold(GC_THRESHOLD)
        try:
            self.loop.run()
        finally:
            gc.set_threshold(*thresholds)
        return report_of(self.setup.policy, self.scheduler, self.feed, self.loop.metrics, self.clock.now_s)


def replay(setup: Setup, load: Load) -> Report:
    """Replay one load on one engine and return the report. Raises engine.sim.feed.Stuck."""
    return Replay(setup, load).run()
