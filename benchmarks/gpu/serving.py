"""The engine under load in this process, in real time: its loop, scheduler, KV memory management and runner.

Requests arrive as in a simulation (`engine.sim.feed`): chats at times drawn from a seed, even if the engine cannot keep
up, and documents whenever one finishes. There is no server, broker or tokenizer, so only the engine is measured.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from benchmarks.gpu.scale import Scale
from engine.config import BE_PREFETCH
from engine.core.config import SchedulerConfig
from engine.core.cost_model import CostModel
from engine.core.kv.cache import KVCacheManager, KVOptions
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.terms import SLO, Checkpoint, Lane, Policy, Preemption, SamplingParams
from engine.loop import EngineLoop
from engine.loop_messages import Message
from engine.runner.base import ModelRunner
from engine.sim.feed import Feed, Limits
from engine.sim.replay import NOTHING
from engine.sim.report import report_of
from engine.sim.traces.arrival import Arrival
from engine.sim.traces.synthetic import backlog, open_arrivals
from engine.sim.traces.workloads import Workload

SEED = 0
CHAT_SLO = SLO(ttft_s=0.2, tpot_s=0.03)
MAX_OPEN_RT = 512  # the engine's socket also rejects more
# The part of a run in which the lanes fill does not count. An H200 needs about 6 s for the prompts of the first 256
# documents and 3 s for their outputs.
WARM_UP_SHARE, WARM_UP_MOST_S = 0.4, 10.0
_POOL_TOKENS = 1 << 16


class WallClock:
    """A real-time clock in place of the simulation's `VirtualClock`; jumping ahead means sleeping."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()

    @property
    def now_s(self) -> float:
        return time.perf_counter() - self._start_s

    def __call__(self) -> float:
        return self.now_s

    def jump_to(self, time_s: float) -> None:
        time.sleep(max(0.0, time_s - self.now_s))


class WallFeed(Feed):
    """A feed of requests with random prompt tokens and a fixed output length.

    End-of-sequence tokens are ignored, because a model with random weights also samples those at random.
    """

    def __init__(
        self, clock: WallClock, rt: Iterator[Arrival], be: Iterator[Arrival], limits: Limits, vocab_size: int
    ) -> None:
        super().__init__(clock, rt, be, limits, CHAT_SLO, max_tokens=1)  # type: ignore[arg-type]
        self._rng = random.Random(SEED)
        self._tokens = self._rng.choices(range(3, vocab_size), k=_POOL_TOKENS)

    def receive(self, timeout_s: float | None) -> list[Message]:
        """Receive messages like the engine's own lanes, waiting up to the timeout for the next arrival."""
        messages = super().receive(timeout_s)
        if messages or not timeout_s:
            return messages
        times = [next_.arrival_s for lane, next_ in self._next.items() if next_ and self._has_room(lane)]
        time.sleep(max(0.0, min([timeout_s, *(arrival_s - self._clock.now_s for arrival_s in times)])))
        return super().receive(0.0)

    def _request(self, arrival: Arrival) -> Request:
        plain = super()._request(arrival)
        start = self._rng.randrange(_POOL_TOKENS - arrival.prompt_tokens)
        return Request(
            plain.request_id,
            plain.lane,
            self._tokens[start : start + arrival.prompt_tokens],
            SamplingParams(max_tokens=arrival.output_tokens, temperature=0.0, ignore_eos=True),
            arrival_s=plain.arrival_s,
            slo=plain.slo if plain.lane is Lane.RT else None,
        )


def window_s(measured_s: float) -> float:
    """Return the duration of a run in which `measured_s` count."""
    return min(measured_s / (1 - WARM_UP_SHARE), measured_s + WARM_UP_MOST_S)


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded runner, and what is needed to build a new engine around it."""

    runner: ModelRunner
    cost_model: CostModel
    scale: Scale

    @property
    def documents_in_flight(self) -> int:
        return self.scale.max_num_seqs + BE_PREFETCH

    @property
    def needed_blocks(self) -> int:
        """KV blocks for the maximum number of documents, each with half of its output."""
        load = self.scale.documents
        draws = list(islice(backlog(load, Lane.BE, SEED), 512))
        mean = sum(prompt + output / 2 for _, _, prompt, output, *_ in draws) / len(draws)
        return int(self.scale.max_num_seqs * mean / self.runner.info.block_size)

    @property
    def least_blocks(self) -> int:
        """KV blocks for the longest chat and the longest document together."""
        longest = [load.prompt.most + load.output.most for load in (self.scale.chats, self.scale.documents)]
        return -(-sum(longest) // self.runner.info.block_size) + 1

    def serve(
        self,
        policy: Policy,
        chats: Workload | None,
        documents: Workload | None,
        *,
        seconds: float | None = None,
        num_documents: int | None = None,
        num_blocks: int | None = None,
        ahead: bool | None = None,
        runner: ModelRunner | None = None,
    ) -> dict[str, Any]:
        """Serve for `seconds` or until `num_documents` are done, and return a report on both lanes.

        `num_blocks` limits the KV memory. `ahead` selects asynchronous scheduling; None uses the engine's default for
        the device. `runner` replaces this engine's runner, for example by a wrapper around it.
        """
        runner = runner or self.runner
        clock = WallClock()
        warmup_s = min(WARM_UP_SHARE * seconds, WARM_UP_MOST_S) if seconds else 0.0
        limits = Limits(self.documents_in_flight, MAX_OPEN_RT, num_documents, seconds, warmup_s)
        rt = open_arrivals(chats, Lane.RT, self.scale.chats_per_s, SEED) if chats else NOTHING()
        be = backlog(documents, Lane.BE, SEED) if documents else NOTHING()
        feed = WallFeed(clock, rt, be, limits, runner.info.vocab_size)
        scheduler = self._scheduler(policy, num_blocks)
        ahead = runner.info.computes_beside_host if ahead is None else ahead
        loop = EngineLoop(scheduler, runner, feed.receive, feed.send, clock, ahead=ahead)
        loop.run()
        first, last = feed.at_start, feed.progress()
        report = report_of(policy, scheduler, feed, loop.metrics, last.time_s).as_json()
        for lane in Lane:
            served = last.served_tokens[lane] - (first.served_tokens[lane] if first else 0)
            elapsed_s = last.time_s - (first.time_s if first else 0.0)
            report[lane.value] |= {
                "num_counted": feed.outcomes[lane].num_counted,
                "tokens_per_s": served / elapsed_s if elapsed_s > 0 else 0.0,
            }
        return report

    def _scheduler(self, policy: Policy, num_blocks: int | None) -> Scheduler:
        """Make a scheduler like `engine.__main__`. Baselines do not share blocks, and recompute after a preemption."""
        info = self.runner.info
        is_bros = policy is Policy.BROS
        config = SchedulerConfig(
            max_num_seqs=info.max_num_seqs,
            max_model_len=info.max_model_len,
            max_num_batched_tokens=self.scale.max_num_batched_tokens,
            reserved_rt_rows=max(1, info.max_num_seqs // 8),
            policy=policy,
            default_slo=CHAT_SLO,
            trims=info.trims,
        )
        options = KVOptions(
            sharing=is_bros,
            preemption=Preemption.TRUNCATE if is_bros else Preemption.WHOLE,
            checkpoint=Checkpoint.LAZY if is_bros else Checkpoint.NONE,
            prefix_cache=False,  # no two prompts share a prefix
            num_host_slots=info.num_host_slots if is_bros else 0,
        )
        blocks = min(num_blocks or info.num_blocks, info.num_blocks)
        kv = KVCacheManager(blocks, info.block_size, options)
        return Scheduler(config, kv, copy.deepcopy(self.cost_model))


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Select the figures of a report that are compared. Latencies are in ms."""
    rt, be = report["rt"], report["be"]
    chosen: dict[str, Any] = {
        "measured_s": report["measured_s"],
        "steps": report["num_steps"],
        "tokens_per_s": report["tokens_per_s"],
        "cost_model_error": report["cost_model_error_ratio"],
    }
    if be["num_arrived"]:
        chosen |= {
            "be_output_tokens_per_s": be["output_tokens_per_s"],
            "be_tokens_per_s": be["tokens_per_s"],
            "be_requests": be["num_succeeded"],
            "be_failed": be["num_failed"],
        }
    if rt["num_arrived"]:
        chosen |= {
            "rt_requests": rt["num_succeeded"],
            "rt_counted": rt["num_counted"],
            "rt_tokens_per_s": rt["tokens_per_s"],
            "rt_failed": rt["num_failed"],
            "rt_rejected": rt["num_rejected"],
            "rt_attainment": rt["attainment"],
        }
        for name in ("ttft", "tpot"):
            for percent in ("p50", "p99"):
                seconds = rt[name][f"{percent}_s"]
                chosen[f"{name}_{percent}_ms"] = None if seconds is None else seconds * 1e3
    if report["preemptions"]:
        chosen |= {"preemptions": report["preemptions"], "restored": report["restored_tokens"]}
    return chosen
