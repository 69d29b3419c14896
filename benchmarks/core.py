"""How much time do the scheduler's decisions take? Measures `schedule` and `update` in microseconds per row.

    python -m benchmarks.core [--running 256] [--steps 2000] [--out benchmarks/results]

No model runs: `update` receives invented results. The loads:

    decode                      bulk that only decodes
    decode_and_chat             the same, with chats
    documents                   documents that arrive and finish: prompts of 309 tokens in chunks, outputs of 48
    documents_and_chat_scarce   the same, with chats, and KV memory for a quarter of them: chats preempt bulk
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result
from engine.core.config import SchedulerConfig
from engine.core.events import FinishedEvent
from engine.core.kv.cache import KVCacheManager, KVOptions
from engine.core.plan import StepPlan, StepResult
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.terms import SLO, Lane, SamplingParams

BLOCK_SIZE = 16
MAX_MODEL_LEN = 8192


@dataclass(frozen=True)
class Load:
    """A load: `num_chats` of the running requests are chats, and each step takes `step_s` on the scheduler's clock."""

    prompt_tokens: int
    output_tokens: int
    num_chats: int
    kv_tokens: int
    step_s: float = 0.02


def loads(num_running: int) -> dict[str, Load]:
    return {
        "decode": Load(16, 4000, 0, num_running * 4200),
        "decode_and_chat": Load(16, 4000, num_running // 8, num_running * 4200),
        "documents": Load(309, 48, 0, num_running * 400),
        "documents_and_chat_scarce": Load(309, 48, num_running // 8, num_running * 100),
    }


def invented_result(plan: StepPlan) -> StepResult:
    return StepResult(sampled=[7] * len(plan.rows), stopped=[False] * len(plan.rows))


def measure(load: Load, num_running: int, num_steps: int) -> dict[str, float]:
    """Run the steps and return medians per row, and the 10th percentile of the sum.

    The first tenth of the steps is warm-up and is excluded. The 10th percentile is close to the time
    on a machine that is otherwise idle.
    """
    config = SchedulerConfig(
        max_num_seqs=num_running,
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=4 * num_running,
        reserved_rt_rows=load.num_chats,
        default_slo=SLO(1.0, 0.1),
    )
    options = KVOptions(num_host_slots=load.kv_tokens)
    scheduler = Scheduler(config, KVCacheManager(load.kv_tokens // BLOCK_SIZE, BLOCK_SIZE, options))
    numbers = itertools.count()
    arrivals = _arrivals(load, numbers)
    for _ in range(num_running - load.num_chats):
        scheduler.add(next(arrivals[Lane.BE]))
    for _ in range(load.num_chats):
        scheduler.add(next(arrivals[Lane.RT]))
    schedule_us: list[float] = []
    update_us: list[float] = []
    num_rows: list[int] = []
    for step in range(num_steps):
        now_s = step * load.step_s
        started_s = time.thread_time()
        plan = scheduler.schedule(now_s)
        scheduled_s = time.thread_time()
        result = invented_result(plan)
        computed_s = time.thread_time()
        events = scheduler.update(plan, result, now_s + load.step_s)
        updated_s = time.thread_time()
        for event in events:
            if type(event) is FinishedEvent:
                request = next(arrivals[event.lane])
                request.arrival_s = now_s + load.step_s
                scheduler.add(request)
        if step >= num_steps // 10 and plan.rows:
            num_rows.append(len(plan.rows))
            schedule_us.append((scheduled_s - started_s) / num_rows[-1] * 1e6)
            update_us.append((updated_s - computed_s) / num_rows[-1] * 1e6)
    scheduler.check_integrity()
    totals_us = [sum(pair) for pair in zip(schedule_us, update_us, strict=True)]
    return {
        "schedule_us": round(statistics.median(schedule_us), 3),
        "update_us": round(statistics.median(update_us), 3),
        "total_us": round(statistics.median(totals_us), 3),
        "total_p10_us": round(statistics.quantiles(totals_us, n=10)[0], 3),
        "rows_per_step": round(statistics.mean(num_rows), 1),
        "preemptions": scheduler.allocator.num_preemptions,
    }


def _arrivals(load: Load, numbers: Iterator[int]) -> dict[Lane, Iterator[Request]]:
    def requests(lane: Lane) -> Iterator[Request]:
        for number in numbers:
            prompt = [number % 8000] * min(load.prompt_tokens, 46 if lane is Lane.RT else load.prompt_tokens)
            sampling = SamplingParams(max_tokens=load.output_tokens, ignore_eos=True)
            slo = SLO(1.0, 0.1) if lane is Lane.RT else None
            yield Request(str(number), lane, prompt, sampling, arrival_s=0.0, slo=slo)

    return {lane: requests(lane) for lane in Lane}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"running": arguments.running}
    for name, load in loads(arguments.running).items():
        result[name] = measure(load, arguments.running, arguments.steps)
        print(f"{name:28}", "  ".join(f"{key} {value:8}" for key, value in result[name].items()))
    print(write_result(arguments.out, "core", result))


if __name__ == "__main__":
    main()
