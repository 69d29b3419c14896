"""How long does a step take on this CPU, and how far is it from the hardware limit?

    python -m benchmarks.step [--dtype bfloat16] [--variants fused,modules] [--threads N] [--out benchmarks/results]

The model is an 82M-parameter Llama with random weights in a temporary directory. A shape is a number of single-token
rows with the same context length, their slots scattered over blocks, and prompt chunks from position 0; all rows sample
greedily. The variants alternate, so that both see the same state of the machine, and the minimum time of a shape
counts, because other processes disturb the rest. The floor is the larger of two times: reading all weights and the K
and V of the contexts once at the measured memory bandwidth, and doing the matrix products at the measured rate of
torch.

"fit" is the prediction of a linear cost model (cost per step, token, sampled row, token of a single row's context, and
query-key pair of a chunk) that is fitted to the same shapes. The scheduler relies on such a model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import write_result
from engine.config import EngineConfig
from engine.core.plan import Restore, RowStart, SlotCopy, StepPlan
from engine.core.terms import SamplingParams
from engine.runner.loading import load_runner
from engine.runner.torch_runner import TorchRunner

CONTEXT = 300
MAX_NUM_SEQS = 72
MODEL = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Shape:
    singles: int
    chunks: tuple[int, ...] = ()
    context: int = CONTEXT

    @property
    def name(self) -> str:
        parts = [f"{self.singles} rows at {self.context}"] if self.singles else []
        return " + ".join(parts + [f"chunk {n}" for n in self.chunks])

    @property
    def num_tokens(self) -> int:
        return self.singles + sum(self.chunks)

    @property
    def features(self) -> list[float]:
        rows = self.singles + len(self.chunks)
        return [1, self.num_tokens, rows, self.singles * self.context, sum(n * n / 2 for n in self.chunks)]


SHAPES = [
    *(Shape(n) for n in (1, 2, 4, 8, 16, 32, 64)),
    *(Shape(n, context=20) for n in (16, 64)),
    *(Shape(0, (n,)) for n in (16, 64, 128, 256, 512)),
    Shape(0, (100, 100, 100)),
    Shape(4, (24,)),
    Shape(16, (100,)),
    Shape(32, (224,)),
    Shape(60, (300, 100)),
]


def make_model(directory: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**MODEL)).save_pretrained(directory)
    return directory


def make_runner(model: Path, dtype: str, variant: str, threads: int | None) -> TorchRunner:
    config = EngineConfig(
        model=str(model), served_model_name="step", listen="unix:///unused", device="cpu", dtype=dtype,
        max_num_seqs=MAX_NUM_SEQS, num_host_slots=CONTEXT,
    )  # fmt: skip
    if variant == "fused":
        return load_runner(config, num_threads=threads)
    with mock.patch("engine.runner.model.loading.can_fuse", return_value=False):
        return load_runner(config, num_threads=threads)


def prepare(runner: TorchRunner, seed: int = 0) -> list[list[int]]:
    """Start every row with CONTEXT computed tokens and return the slots of each row."""
    rng = np.random.default_rng(seed)
    block_size = runner.info.block_size
    per_row = -(-640 // block_size)
    blocks = rng.permutation(runner.info.num_blocks)[: per_row * MAX_NUM_SEQS].reshape(MAX_NUM_SEQS, per_row)
    slots = [
        [
            int(b) * block_size + (block_size - 1 - i if row % 2 else i)
            for b in row_blocks
            for i in range(block_size)
        ]
        for row, row_blocks in enumerate(blocks)
    ]
    tokens = rng.integers(0, MODEL["vocab_size"], CONTEXT).tolist()
    sampling = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
    starts = [RowStart(row, str(row), tokens, 1, [], sampling) for row in range(MAX_NUM_SEQS)]
    runner.execute(StepPlan([0], [0], [CONTEXT], [False], tokens, slots[0][:CONTEXT], row_starts=starts))
    # The other rows receive the K and V of the first one by way of host memory.
    host_slots = list(range(CONTEXT))
    restores = [Restore(row, 0, slots[row][:CONTEXT], host_slots) for row in range(1, MAX_NUM_SEQS)]
    copies = [SlotCopy(slots[0][:CONTEXT], host_slots)]
    runner.execute(StepPlan([], [], [], [], [], [], copies_out=copies, restores=restores))
    return slots


def plan_of(shape: Shape, slots: list[list[int]]) -> StepPlan:
    plan = StepPlan([], [], [], [], [], [])
    parts = [(shape.context, 1)] * shape.singles + [(0, n) for n in shape.chunks]
    for row, (start, count) in enumerate(parts):
        plan.rows.append(row)
        plan.starts.append(start)
        plan.counts.append(count)
        plan.samples.append(True)
        plan.token_ids.extend((7 * row + i) % MODEL["vocab_size"] for i in range(count))
        plan.slots.extend(slots[row][start : start + count])
    return plan


def best_s(work: Callable[[], object], repeats: int = 7) -> float:
    times_s = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - started_s)
    return min(times_s)


def rates(dtype: torch.dtype) -> dict[str, float]:
    """Measure memory bandwidth, on memory far larger than the caches, and the rate of a product with 512 rows."""
    memory = torch.zeros(64 * 1024 * 1024)
    products_per_s = 0.0
    for kind in {torch.float32, dtype}:
        x, weight = torch.randn(512, 768).to(kind), torch.randn(4096, 768).to(kind)
        seconds = best_s(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight))  # type: ignore[misc]
        products_per_s = max(products_per_s, 2 * 512 * 768 * 4096 / seconds)
    return {"bytes_per_s": memory.nbytes / best_s(memory.sum), "flops_per_s": products_per_s}


def floor_s(shape: Shape, rate: dict[str, float], itemsize: int) -> float:
    hidden, kv = MODEL["hidden_size"], MODEL["num_key_value_heads"] * 64
    per_layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * MODEL["intermediate_size"]
    layers, head = MODEL["num_hidden_layers"] * per_layer, hidden * MODEL["vocab_size"]
    context = shape.singles * shape.context * 2 * kv * MODEL["num_hidden_layers"]
    rows = shape.singles + len(shape.chunks)
    attention = 4 * hidden * MODEL["num_hidden_layers"] * sum(n * n / 2 for n in shape.chunks)
    memory_s = (layers + head + context) * itemsize / rate["bytes_per_s"]
    return max(memory_s, (2 * (shape.num_tokens * layers + rows * head) + attention) / rate["flops_per_s"])


def measure(runners: dict[str, TorchRunner], repeats: int) -> dict[str, dict[str, float]]:
    """Return the minimum seconds by variant and name of the shape."""
    slots = {variant: prepare(runner) for variant, runner in runners.items()}
    times_s: dict[str, dict[str, list[float]]] = {variant: {} for variant in runners}
    for round_ in range(repeats + 1):
        for shape in SHAPES:
            for variant, runner in runners.items():
                plan = plan_of(shape, slots[variant])
                started_s = time.perf_counter()
                runner.execute(plan)
                if round_:
                    times_s[variant].setdefault(shape.name, []).append(time.perf_counter() - started_s)
    return {
        variant: {name: min(values) for name, values in shapes.items()} for variant, shapes in times_s.items()
    }


def fitted_s(times_s: dict[str, float]) -> tuple[dict[str, float], list[float]]:
    """What the linear model says of each shape, and its coefficients, least squares of relative errors."""
    features = np.array([shape.features for shape in SHAPES])
    measured = np.array([times_s[shape.name] for shape in SHAPES])
    costs = np.linalg.lstsq(features / measured[:, None], np.ones(len(measured)), rcond=None)[0]
    return dict(zip(times_s, (features @ costs).tolist(), strict=True)), costs.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument(
        "--variants",
        default="fused,modules",
        help="fused: the kernels of the engine; modules: the modules of transformers",
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = make_model(Path(directory))
        runners = {
            variant: make_runner(model, arguments.dtype, variant, arguments.threads)
            for variant in arguments.variants.split(",")
        }
    dtype = getattr(torch, arguments.dtype)
    rate = rates(dtype)
    times_s = measure(runners, arguments.repeats)
    print(f"{rate['bytes_per_s'] / 1e9:.1f} GB/s, {rate['flops_per_s'] / 1e9:.0f} GFLOP/s, {arguments.dtype}")
    result: dict[str, Any] = {
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "rates": rate,
        "shapes": {},
    }
    fits = {variant: fitted_s(shapes) for variant, shapes in times_s.items()}
    for shape in SHAPES:
        floor = floor_s(shape, rate, dtype.itemsize)
        row = {"floor_ms": floor * 1e3}
        text = f"{shape.name:32} floor {floor * 1e3:7.1f} ms"
        for variant, shapes in times_s.items():
            seconds, fit = shapes[shape.name], fits[variant][0][shape.name]
            row[f"{variant}_ms"], row[f"{variant}_fit_ms"] = seconds * 1e3, fit * 1e3
            text += f" | {variant} {seconds * 1e3:7.1f} ms, {shape.num_tokens / seconds:6.0f} tokens/s, "
            text += f"fit {fit / seconds - 1:+4.0%}"
        result["shapes"][shape.name] = row
        print(text)
    result["costs"] = {variant: fit[1] for variant, fit in fits.items()}
    for variant, costs in result["costs"].items():
        names = ("step", "token", "row", "context token", "chunk's query times key")
        print(
            variant, ", ".join(f"{name} {cost * 1e6:.3g} us" for name, cost in zip(names, costs, strict=True))
        )
    print(write_result(arguments.out, "step", result))


if __name__ == "__main__":
    main()
