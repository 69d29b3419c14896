"""The engine itself under load, in this process: its loop, scheduler, KV bookkeeping and runner, by the wall clock.

Requests come as in a simulation (`engine.sim.feed`): chats at the times drawn from a seed, whether or not the engine
keeps up, documents as places fall free. There is no server, broker or tokenizer: what is measured is the engine.
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
from engine.loop import EngineLoop, Message
from engine.runner.base import ModelRunner
from engine.sim.feed import Feed, Limits
from engine.sim.replay import NOTHING
from engine.sim.report import report_of
from engine.sim.traces.arrival import Arrival
from engine.sim.traces.synthetic import backlog, open_arrivals
from engine.sim.traces.workloads import Workload

SEED = 0
PROMISE = SLO(ttft_s=0.2, tpot_s=0.03)
MAX_OPEN_RT = 512  # as the engine's socket refuses more
# Of a run, in which the lanes fill: it counts for nothing. The first 256 documents' prompts take an H200 about 6 s and
# their outputs 3.
WARM_UP_SHARE, WARM_UP_MOST_S = 0.4, 10.0
_POOL_TOKENS = 1 << 16


class WallClock:
    """Seconds since it was made, in the place of a simulation's `VirtualClock`: to jump ahead is to sleep."""

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
    """Requests whose prompts are random tokens, and which end at their true length, as the engine is told: a model with
    random weights draws tokens that mean nothing, among them the one that ends a sequence."""

    def __init__(
        self, clock: WallClock, rt: Iterator[Arrival], be: Iterator[Arrival], limits: Limits, vocab_size: int
    ) -> None:
        super().__init__(clock, rt, be, limits, PROMISE, max_tokens=1)  # type: ignore[arg-type]
        self._rng = random.Random(SEED)
        self._tokens = self._rng.choices(range(3, vocab_size), k=_POOL_TOKENS)

    def receive(self, timeout_s: float | None) -> list[Message]:
        """As the engine's own lanes: within the timeout it waits for what comes next."""
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
    """How long a run takes of which so much counts."""
    return min(measured_s / (1 - WARM_UP_SHARE), measured_s + WARM_UP_MOST_S)


@dataclass(frozen=True, slots=True)
class Engine:
    """A runner with what it takes to build a fresh engine around it."""

    runner: ModelRunner
    cost_model: CostModel
    scale: Scale

    @property
    def documents_in_hand(self) -> int:
        return self.scale.max_num_seqs + BE_PREFETCH

    @property
    def needed_blocks(self) -> int:
        """For a full house of documents, each with half of its output, and a few chats."""
        load = self.scale.documents
        draws = list(islice(backlog(load, Lane.BE, SEED), 512))
        mean = sum(prompt + output / 2 for _, _, prompt, output, *_ in draws) / len(draws)
        return int(self.scale.max_num_seqs * mean / self.runner.info.block_size)

    @property
    def least_blocks(self) -> int:
        """For the longest request there is, twice: one chat and one document."""
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
        """Serve for so long, or until so many documents are done; what became of the lanes. `num_blocks` of the KV
        memory, as far as it goes. `ahead` None: as the engine does on this device. `runner`: this one's, wrapped."""
        runner = runner or self.runner
        clock = WallClock()
        warmup_s = min(WARM_UP_SHARE * seconds, WARM_UP_MOST_S) if seconds else 0.0
        limits = Limits(self.documents_in_hand, MAX_OPEN_RT, num_documents, seconds, warmup_s)
        rt = open_arrivals(chats, Lane.RT, self.scale.chats_per_s, SEED) if chats else NOTHING()
        be = backlog(documents, Lane.BE, SEED) if documents else NOTHING()
        feed = WallFeed(clock, rt, be, limits, runner.info.vocab_size)
        scheduler = self._scheduler(policy, num_blocks)
        ahead = runner.info.computes_beside_host if ahead is None else ahead
        loop = EngineLoop(scheduler, runner, feed.receive, feed.send, clock, ahead=ahead)
        loop.run()
        report = report_of(policy, scheduler, feed, loop.metrics, clock.now_s).as_json()
        first, last = feed.at_start, feed.progress()
        for lane in Lane:
            served = last.served_tokens[lane] - (first.served_tokens[lane] if first else 0)
            elapsed_s = last.time_s - (first.time_s if first else 0.0)
            report[lane.value] |= {
                "num_counted": feed.outcomes[lane].num_counted,
                "tokens_per_s": served / elapsed_s if elapsed_s > 0 else 0.0,
            }
        return report

    def _scheduler(self, policy: Policy, num_blocks: int | None) -> Scheduler:
        """As `engine.__main__` makes it. Baselines share no blocks, and compute again what was preempted."""
        info = self.runner.info
        is_bros = policy is Policy.BROS
        config = SchedulerConfig(
            max_num_seqs=info.max_num_seqs,
            max_model_len=info.max_model_len,
            max_num_batched_tokens=self.scale.max_num_batched_tokens,
            reserved_rt_rows=max(1, info.max_num_seqs // 8),
            policy=policy,
            default_slo=PROMISE,
        )
        options = KVOptions(
            sharing=is_bros,
            preemption=Preemption.TRUNCATE if is_bros else Preemption.WHOLE,
            checkpoint=Checkpoint.LAZY if is_bros else Checkpoint.NONE,
            prefix_cache=False,  # no two prompts begin alike
            num_host_slots=info.num_host_slots if is_bros else 0,
        )
        blocks = min(num_blocks or info.num_blocks, info.num_blocks)
        kv = KVCacheManager(blocks, info.block_size, options)
        return Scheduler(config, kv, copy.deepcopy(self.cost_model))


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Of a report, what is compared. Latencies in ms."""
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
