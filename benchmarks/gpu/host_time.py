"""How long the host works on a step of the runner, and how many kernels it launches, without a GPU.

    python -m benchmarks.gpu.host_time [--steps 300] [--out FILE.json]

The steps have the sizes of an 8B model's: 32 layers, 8 heads of keys, up to 256 rows. Graphs and the kernel that draws
are stubs that compute nothing. So what is timed is the host's own work: arrays of the plan, the vector for the device,
the draw's parameters, and looking at the tokens. Not included are the calls of CUDA (one launch of the graph, one or
two of the draw and a few copies) and the scheduler, which `benchmarks.core` times. The launches of a step without a
graph are counted on a model of 32 layers, by catching them. A step that no graph holds is not timed, since its host
time is that of its launches, which need a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: an interpreted kernel is no JITFunction

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM
from triton.runtime.jit import JITFunction

from benchmarks.machine import machine
from engine.core.plan import RowStart, StepPlan
from engine.core.terms import SamplingParams
from engine.kernels.cpu import sampling as cpu_sampling
from engine.kernels.layout import StepLayout
from engine.runner.base import RunnerInfo
from engine.runner.kv.memory import LayerShape, allocate_kv
from engine.runner.model.causal_lm import CausalLM
from engine.runner.model.fused_gpu import GpuDecoder
from engine.runner.torch_runner import TorchRunner

LIMIT_MS = 1.5
NUM_LAYERS, MAX_ROWS, MAX_MODEL_LEN, MAX_TOKENS = 32, 256, 16384, 2048
VOCAB_SIZE = 64
NUM_PROGRAMS, NUM_TILE_PROGRAMS = 49, 8  # of an H200, for 32 heads of queries and 8 of keys
BLOCK_SIZE, NUM_BLOCKS = 16, 25_600
# Rows of one token at a context, and a chunk of a prompt.
STEPS = ((1, 1000, 0), (256, 1000, 0), (8, 1000, 100), (32, 8000, 512), (224, 1000, 800), (224, 1000, 1824))
SAMPLINGS = (
    SamplingParams(max_tokens=100, temperature=0.0),
    SamplingParams(max_tokens=100, temperature=0.7, top_p=0.95),
)


class StubGraph:
    def replay(self) -> None:
        """Does nothing."""

    def release(self) -> None:
        """Does nothing."""


class StubGraphs:
    """A `GraphBackend` whose graphs do nothing."""

    def warm_up(self, function: Callable[[], object]) -> None:
        function()

    def capture(self, function: Callable[[], object]) -> StubGraph:
        return StubGraph()

    def bytes_taken(self) -> int:
        return 0


def stub_runner() -> TorchRunner:
    """A runner whose model answers with zeros, with graphs of all sizes."""
    info = RunnerInfo(
        NUM_BLOCKS, BLOCK_SIZE, MAX_ROWS, MAX_MODEL_LEN, VOCAB_SIZE, "stub", "float32",
        computes_beside_host=True, max_num_batched_tokens=MAX_TOKENS,
    )  # fmt: skip
    device = torch.device("cpu")
    layers = {0: LayerShape(1, 1, 2, 2, window=None)}
    decoder: Any = mock.Mock()
    decoder.forward = lambda token_ids, positions, layout, caches, wanted: torch.zeros(
        len(wanted), VOCAB_SIZE
    )
    model = CausalLM(
        None, device, torch.float32, layers, VOCAB_SIZE, MAX_MODEL_LEN, frozenset(), True, fused=decoder
    )
    caches = allocate_kv(layers, NUM_BLOCKS * BLOCK_SIZE, torch.float32, device)
    runner = TorchRunner(model, caches, info, "")
    forward = runner._forward  # as on a GPU
    forward._num_programs, forward._num_tile_programs = NUM_PROGRAMS, NUM_TILE_PROGRAMS
    runner.capture_graphs(StubGraphs(), 1 << 40)
    return runner


def plan_of(num_rows: int, context: int, chunk: int) -> StepPlan:
    rows = list(range(num_rows + (chunk > 0)))
    counts = [1] * num_rows + [chunk] * (chunk > 0)
    slots = np.random.default_rng(0).permutation(NUM_BLOCKS * BLOCK_SIZE)[: sum(counts)]
    return StepPlan(
        rows=rows,
        starts=[context] * num_rows + [0] * (chunk > 0),
        counts=counts,
        samples=[True] * len(rows),
        token_ids=[-1] * num_rows + [5] * chunk,
        slots=slots.tolist(),
    )


def host_times(num_rows: int, context: int, chunk: int, num_steps: int) -> dict[str, Any]:
    """The median time of launching a step and of taking its result, once all of its rows have started."""
    runner = stub_runner()
    plan = plan_of(num_rows, context, chunk)
    starts = [RowStart(row, str(row), [5] * 16, 16, [], SAMPLINGS[row % len(SAMPLINGS)]) for row in plan.rows]
    runner.execute(StepPlan([], [], [], [], [], [], row_starts=starts))
    launch_s, result_s, is_replayed = [], [], False
    with mock.patch.object(
        cpu_sampling, "draw", lambda logits, _: torch.zeros(len(logits), dtype=torch.int64)
    ):
        for _ in range(num_steps):
            begun_s = time.perf_counter()
            step = runner.launch(plan)
            launched_s = time.perf_counter()
            step.result()
            launch_s.append(launched_s - begun_s)
            result_s.append(time.perf_counter() - launched_s)
            is_replayed = step.is_replayed
    runner.close()
    if not is_replayed:
        return {}
    figures = {"launch_ms": statistics.median(launch_s) * 1e3, "result_ms": statistics.median(result_s) * 1e3}
    return {**figures, "host_ms": sum(figures.values())}


class Operations(TorchDispatchMode):
    """Counts torch's operations that launch a kernel on a GPU: all but views and new empty tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count += not (is_view or "empty" in func._schema.name)
        return func(*args, **(kwargs or {}))


def launches(num_rows: int, context: int, chunk: int) -> dict[str, int]:
    """How many kernels a forward pass launches without a graph."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=NUM_LAYERS, num_attention_heads=4,
        num_key_value_heads=1, vocab_size=VOCAB_SIZE, max_position_embeddings=MAX_MODEL_LEN,
    )  # fmt: skip
    layers = {i: LayerShape(4, 1, 16, 16, window=None) for i in range(NUM_LAYERS)}
    decoder = GpuDecoder(LlamaForCausalLM(config).eval(), layers, MAX_MODEL_LEN)
    plan = plan_of(num_rows, context, chunk)
    layout = StepLayout.build(
        torch.zeros(MAX_ROWS + 1, MAX_MODEL_LEN, dtype=torch.int32),
        torch.arange(len(plan.slots)), plan.rows, plan.starts, plan.counts,
        num_programs=NUM_PROGRAMS, num_tile_programs=NUM_TILE_PROGRAMS,
    )  # fmt: skip
    caches = allocate_kv(layers, len(plan.slots), torch.float32, torch.device("cpu"))
    token_ids = torch.zeros(len(plan.slots), dtype=torch.int64)
    wanted = torch.zeros(len(plan.rows), dtype=torch.int64)
    with mock.patch.object(JITFunction, "run") as launched, Operations() as operations:
        decoder.forward(token_ids, token_ids, layout, caches, wanted)
    return {"triton": launched.call_count, "torch": operations.count}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.host_time",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| step | launches without a graph, Triton + torch | by a graph | launch, ms | result, ms | host, ms |"
    )
    print("| --- | --: | --: | --: | --: | --: |")
    found: dict[str, Any] = {}
    for num_rows, context, chunk in STEPS:
        name = f"{num_rows} rows at {context}" + (f" and a chunk of {chunk}" if chunk else "")
        counted = launches(num_rows, context, chunk)
        times = host_times(num_rows, context, chunk, arguments.steps)
        found[name] = {"launches": counted, **times}
        shown = [f"{value:.2f}" for value in times.values()] or ["-"] * 3
        by_graph = "1" if times else "no graph"
        print(
            f"| {name} | {counted['triton']} + {counted['torch']} | {by_graph} | {' | '.join(shown)} |",
            flush=True,
        )
    if arguments.out is not None:
        document = {"benchmark": "gpu_host_time", "machine": machine(), "result": found}
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")
    slow = [name for name, figures in found.items() if figures.get("host_ms", 0) > LIMIT_MS]
    if slow:
        raise SystemExit(f"the host works for more than {LIMIT_MS} ms on: {'; '.join(slow)}")


if __name__ == "__main__":
    main()
