"""What does each scheduling and memory feature contribute? One load, with the features switched off one at a time.

    python -m benchmarks.ablation [--seconds 600] [--seeds 3] [--device cpu-mini] [--out benchmarks/results]

The load is 2 chats per second, in bursts, with 46 prompt and 24 output tokens, beside 64 concurrent documents with 309
prompt and 48 output tokens. KV memory holds a quarter of those documents, or an eighth. The scheduler and the memory
management are the engine's own; the device is simulated, so that runs differ only in the feature. To measure a feature
on a real device, use flags such as `benchmarks.serving --own "--no-kv-sharing ..."`.

"moved" is the cost of preemption: tokens recomputed or copied back, per token produced.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result
from engine.core.kv.cache import KVCacheManager, KVOptions
from engine.core.scheduler import Scheduler
from engine.core.terms import Checkpoint, Policy, Preemption
from engine.sim.feed import Limits
from engine.sim.replay import BLOCK_SIZE, Setup, replay
from engine.sim.report import Report
from engine.sim.scenario import make_setup, synthetic_load

DOCUMENTS = 64
DOCUMENT_TOKENS = 357
MEMORY = {"quarter": DOCUMENTS * DOCUMENT_TOKENS // 4, "eighth": DOCUMENTS * DOCUMENT_TOKENS // 8}


@dataclass(frozen=True, slots=True)
class Ablated(Setup):
    """A simulation setup with explicit KV options, instead of those that follow from the policy."""

    options: KVOptions = field(default_factory=KVOptions)

    def scheduler(self) -> Scheduler:
        made = Setup.scheduler(self)
        options = self.options
        if options.checkpoint is not Checkpoint.NONE:
            options = dataclasses.replace(options, num_host_slots=self.device.host_tokens)
        return Scheduler(made.config, KVCacheManager(made.kv.num_blocks, BLOCK_SIZE, options))


ALL_ON = KVOptions(prefix_cache=False)  # no two documents of this load share a prefix
BASELINE = KVOptions(False, Preemption.WHOLE, Checkpoint.NONE, prefix_cache=False)
VARIANTS: dict[str, dict[str, Any]] = {
    "all on": {},
    "no sharing of blocks": {"options": dataclasses.replace(ALL_ON, sharing=False)},
    "preempt whole requests": {"options": dataclasses.replace(ALL_ON, preemption=Preemption.WHOLE)},
    "no preemption": {"options": dataclasses.replace(ALL_ON, preemption=Preemption.NONE)},
    "no checkpoints": {"options": dataclasses.replace(ALL_ON, checkpoint=Checkpoint.NONE)},
    "whole requests, no sharing, no checkpoints": {
        "options": dataclasses.replace(
            ALL_ON, preemption=Preemption.WHOLE, checkpoint=Checkpoint.NONE, sharing=False
        )
    },
    "policy priority": {"policy": Policy.PRIORITY, "options": BASELINE},
    "policy fcfs": {"policy": Policy.FCFS, "options": BASELINE},
}


def run(variant: dict[str, Any], kv_tokens: int, device: str, seconds: float, seed: int) -> Report:
    base = make_setup(device, ttft_s=0.15, tpot_s=0.035, kv_tokens=kv_tokens, seed=seed)
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(Setup)}
    setup = Ablated(**{**values, "options": ALL_ON, **variant})
    limits = Limits(DOCUMENTS, 512, None, seconds, 10.0)
    return replay(
        setup, synthetic_load(limits, rt="cpu-mini-chat", rt_rate=2.0, be="cpu-mini", be_rate=None, seed=seed)
    )


def figures(reports: list[Report]) -> dict[str, float]:
    """Return the key figures of a variant as means over the seeds."""

    def mean(values: list[float]) -> float:
        return round(statistics.fmean(values), 4)

    produced = [r.rt.output_tokens + r.be.output_tokens for r in reports]
    return {
        "attainment": mean([r.rt.attainment or 0.0 for r in reports]),
        "ttft_p99_ms": mean([1e3 * (r.rt.ttft.p99_s or 0.0) for r in reports]),
        "tpot_p99_ms": mean([1e3 * (r.rt.tpot.p99_s or 0.0) for r in reports]),
        "be_tokens_per_s": mean([r.be.output_tokens_per_s for r in reports]),
        "preemptions": mean([float(r.preemptions) for r in reports]),
        "moved": mean([sum(r.restored_tokens.values()) / p for r, p in zip(reports, produced, strict=True)]),
        "recomputed": mean(
            [r.restored_tokens["recompute"] / p for r, p in zip(reports, produced, strict=True)]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="virtual duration of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu-mini")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    result: dict[str, Any] = vars(arguments) | {"out": str(arguments.out)}
    for memory, kv_tokens in MEMORY.items():
        print(f"\nKV memory: {memory} of the concurrent documents ({kv_tokens} tokens)")
        result[memory] = {}
        for name, variant in VARIANTS.items():
            reports = [
                run(variant, kv_tokens, arguments.device, arguments.seconds, seed)
                for seed in range(arguments.seeds)
            ]
            result[memory][name] = figures(reports)
            print(
                f"{name:42}",
                "  ".join(f"{key} {value:9.4g}" for key, value in result[memory][name].items()),
                flush=True,
            )
    print(write_result(arguments.out, "ablation", result))


if __name__ == "__main__":
    main()
