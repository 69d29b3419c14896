"""Steps of the engine's runner against their floors: decoding at several sizes and contexts, and a long prompt."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.idle import kernels_of
from benchmarks.gpu.models import Model
from benchmarks.gpu.report import Part
from benchmarks.gpu.scale import Scale
from engine.core.plan import Restore, RowStart, SlotCopy, StepPlan
from engine.core.terms import SamplingParams
from engine.runner.base import ModelRunner
from engine.runner.torch_runner import TorchRunner

GREEDY = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
WARM_UPS = 3
MAX_RUNS = 30


@dataclass(frozen=True, slots=True)
class Rows:
    """The slots of each slot-table row, scattered by blocks. Every second row fills its blocks downwards, like bulk."""

    slots: list[list[int]]

    @staticmethod
    def scattered(runner: ModelRunner, num_rows: int, length: int) -> Rows | None:
        """Make `num_rows` rows of `length` slots; None if they do not fit into KV memory."""
        block_size, num_blocks = runner.info.block_size, runner.info.num_blocks
        per_row = -(-length // block_size)
        if num_rows * per_row > num_blocks:
            return None
        blocks = np.random.default_rng(0).permutation(num_blocks)[: num_rows * per_row].reshape(num_rows, -1)
        inside = np.arange(block_size)
        up = (blocks[:, :, None] * block_size + inside).reshape(num_rows, -1)
        down = (blocks[:, :, None] * block_size + inside[::-1]).reshape(num_rows, -1)
        return Rows([(down if row % 2 else up)[row, :length].tolist() for row in range(num_rows)])


def measure_steps(
    part: Part,
    name: str,
    model: Model,
    runner: ModelRunner,
    scale: Scale,
    ceilings: Ceilings,
    kv_itemsize: int | None = None,
) -> None:
    """Measure all shapes of the scale that fit into KV memory. `kv_itemsize` defaults to that of the activations.

    With float8 weights, floors count one byte per weight of the layers, and their products at the rate of float8.
    """
    itemsize = getattr(torch, runner.info.dtype).itemsize
    kv_itemsize = kv_itemsize or itemsize
    is_fp8 = runner.info.quantization == "fp8"
    layer_itemsize = 1 if is_fp8 else itemsize

    def floor_of(num_bytes: float, num_tokens: int, other_flops: float) -> float:
        layers = model.layer_flops(num_tokens)
        return ceilings.floor_s(
            num_bytes, other_flops + (0.0 if is_fp8 else layers), layers if is_fp8 else 0.0
        )

    for num_rows, context in scale.decodes:
        title = f"{name}, {num_rows} rows at {context}"
        rows = Rows.scattered(runner, num_rows, context + 1)
        if rows is None or context > runner.info.num_host_slots:
            part.skipped.append(f"{title} (does not fit into KV memory)")
            continue
        num_bytes = model.step_bytes(layer_itemsize, itemsize, kv_itemsize, num_rows, context)
        floor_s = floor_of(num_bytes, num_rows, 2 * num_rows * model.head_params)
        part.measure(title, lambda r=rows, c=context, f=floor_s: decode(runner, scale, r, c, f))  # type: ignore[misc]
    for num_rows, context, chunk in scale.mixed:
        title = f"{name}, {num_rows} rows at {context} and a chunk of {chunk}"
        rows = Rows.scattered(runner, num_rows + 1, max(context + 1, chunk))
        if rows is None:
            part.skipped.append(f"{title} (does not fit into KV memory)")
            continue
        num_bytes = model.step_bytes(layer_itemsize, itemsize, kv_itemsize, num_rows, context)
        floor_s = floor_of(num_bytes, num_rows + chunk, 2 * (num_rows + 1) * model.head_params)
        part.measure(title, lambda r=rows, c=context, n=chunk, f=floor_s: mixed(runner, scale, r, c, n, f))  # type: ignore[misc]
    floor_s = floor_of(layer_itemsize * model.layer_params, scale.prefill, model.prefill_flops(scale.prefill))
    part.measure(f"{name}, prompt of {scale.prefill}", lambda: prefill(runner, scale, floor_s))


def measure_profile(part: Part, name: str, runner: ModelRunner, scale: Scale) -> None:
    """Measure the time by kernel of a decode step at the second size of the scale, and of a full prompt chunk."""
    num_rows, context = scale.decodes[1]
    rows = Rows.scattered(runner, num_rows, max(context + 1, scale.max_num_batched_tokens))
    if rows is None:
        return
    fill(runner, rows, context, scale.max_num_batched_tokens)
    plan = decode_plan(runner, rows, context)
    part.measure(f"{name}, time by kernel, {num_rows} rows at {context}", lambda: kernels_of(runner, plan))
    chunk = prompt_plans(runner, rows.slots[0], scale.max_num_batched_tokens, scale.max_num_batched_tokens)[0]
    part.measure(f"{name}, time by kernel, a full chunk", lambda: kernels_of(runner, chunk))


def agreement(runner: TorchRunner, scale: Scale) -> dict[str, float]:
    """Return the share of rows that sample the same token in a graph and in an eager step, at all sizes of the scale.

    It need not be 1: rounding depends on how a product is split, and with random weights the most likely tokens have
    similar scores.
    """
    num_same = num_rows = 0
    for count, context in scale.decodes:
        rows = Rows.scattered(runner, count, context + 1)
        if rows is None or context > runner.info.num_host_slots:
            continue
        fill(runner, rows, context, scale.max_num_batched_tokens)
        plan = decode_plan(runner, rows, context)
        in_graph = runner.execute(plan).sampled
        with mock.patch.object(
            runner._forward, "_graphs", None
        ):  # no flag of the engine switches them off once captured
            eager = runner.execute(plan).sampled
        num_same += sum(a == b for a, b in zip(in_graph, eager, strict=True))
        num_rows += count
    return {"rows": num_rows, "share": num_same / num_rows, "at_least": 0.8}


def decode(runner: ModelRunner, scale: Scale, rows: Rows, context: int, floor_s: float) -> dict[str, Any]:
    """Measure a step in which every row computes one token after `context` others.

    For `step_ms`, each step is awaited before the next is launched. For `overlapped_ms`, the next one is launched
    first, as the engine's loop does on a GPU. `launch_ms` is the part of a step in which the host launches it.
    """
    fill(runner, rows, context, scale.max_num_batched_tokens)
    plan = decode_plan(runner, rows, context)
    return _times_of(runner, plan, scale, floor_s)


def mixed(
    runner: ModelRunner, scale: Scale, rows: Rows, context: int, chunk: int, floor_s: float
) -> dict[str, Any]:
    """Measure a step in which all rows but the last compute one token after `context` others, and the last row the
    first `chunk` tokens of a prompt. Otherwise the same as `decode`."""
    *others, last = rows.slots
    fill(runner, Rows(others), context, scale.max_num_batched_tokens)
    num_rows = len(others)
    decoding = decode_plan(runner, Rows(others), context)
    token_ids = np.random.default_rng(2).integers(3, runner.info.vocab_size, chunk).tolist()
    runner.execute(
        StepPlan(
            [], [], [], [], [], [], row_starts=[RowStart(num_rows, "chunk", token_ids, chunk, [], GREEDY)]
        )
    )
    plan = StepPlan(
        rows=[*decoding.rows, num_rows],
        starts=[*decoding.starts, 0],
        counts=[*decoding.counts, chunk],
        samples=[True] * (num_rows + 1),
        token_ids=[*decoding.token_ids, *token_ids],
        slots=[*decoding.slots, *last[:chunk]],
    )
    return _times_of(runner, plan, scale, floor_s)


def _times_of(runner: ModelRunner, plan: StepPlan, scale: Scale, floor_s: float) -> dict[str, float]:
    step_s = median_s(lambda: runner.execute(plan), scale.step_s)
    num_runs = _num_runs(step_s, scale.step_s)
    figures = _against(floor_s, {"step": step_s, "overlapped": overlapped_s(runner, plan, num_runs)})
    return figures | {"launch_ms": launch_s(runner, plan, num_runs) * 1e3}


def launch_s(runner: ModelRunner, plan: StepPlan, num_runs: int) -> float:
    """Return the median time that launching a step takes while the device is idle."""
    times_s = []
    for _ in range(num_runs):
        started_s = time.perf_counter()
        pending = runner.launch(plan)
        times_s.append(time.perf_counter() - started_s)
        pending.result()
    return statistics.median(times_s)


def decode_plan(runner: ModelRunner, rows: Rows, context: int) -> StepPlan:
    """Plan one token for each row, after `context` others."""
    num_rows, vocab_size = len(rows.slots), runner.info.vocab_size
    return StepPlan(
        rows=list(range(num_rows)),
        starts=[context] * num_rows,
        counts=[1] * num_rows,
        samples=[True] * num_rows,
        token_ids=[row * 7919 % vocab_size for row in range(num_rows)],
        slots=[slots[context] for slots in rows.slots],
    )


def prefill(runner: ModelRunner, scale: Scale, floor_s: float) -> dict[str, float]:
    """Measure one prompt in the chunks that the engine would use, and add up their times."""
    rows = Rows.scattered(runner, 1, scale.prefill)
    assert rows is not None, "KV memory holds at least one prompt"
    seconds = sum(
        median_s(lambda p=plan: runner.execute(p), scale.step_s)  # type: ignore[misc]
        for plan in prompt_plans(runner, rows.slots[0], scale.prefill, scale.max_num_batched_tokens)
    )
    return _against(floor_s, {"prompt": seconds}) | {"tokens_per_s": scale.prefill / seconds}


def fill(runner: ModelRunner, rows: Rows, context: int, chunk: int) -> None:
    """Start all rows with the K and V of the same `context` random tokens.

    The first row computes them; the others receive a copy by way of host memory.
    """
    first, *others = rows.slots
    for plan in prompt_plans(runner, first, context, chunk):
        runner.execute(plan)
    host_slots = list(range(context))
    copies = [SlotCopy(first[:context], host_slots)] if others else []
    starts = [
        RowStart(row, str(row), [0] * (context + 1), 1, [], GREEDY) for row in range(1, len(rows.slots))
    ]
    restores = [Restore(row, 0, slots[:context], host_slots) for row, slots in enumerate(others, 1)]
    runner.execute(StepPlan([], [], [], [], [], [], row_starts=starts, copies_out=copies, restores=restores))


def prompt_plans(runner: ModelRunner, slots: list[int], num_tokens: int, chunk: int) -> list[StepPlan]:
    """Plan the steps that compute a prompt in row 0 into `slots`, in chunks of at most `chunk` tokens."""
    token_ids = np.random.default_rng(1).integers(3, runner.info.vocab_size, num_tokens).tolist()
    plans = []
    for start in range(0, num_tokens, chunk):
        end = min(start + chunk, num_tokens)
        begun = [] if start else [RowStart(0, "0", token_ids, num_tokens, [], GREEDY)]
        samples = [end == num_tokens]
        plans.append(
            StepPlan(
                [0], [start], [end - start], samples, token_ids[start:end], slots[start:end], row_starts=begun
            )
        )
    return plans


def overlapped_s(runner: ModelRunner, plan: StepPlan, num_steps: int) -> float:
    """Return the seconds per step if the next step is launched before the result of one is awaited."""
    pending = runner.launch(plan)
    started_s = time.perf_counter()
    for _ in range(num_steps):
        following = runner.launch(plan)
        pending.result()
        pending = following
    elapsed_s = time.perf_counter() - started_s
    pending.result()
    return elapsed_s / num_steps


def median_s(work: Callable[[], object], budget_s: float) -> float:
    """Return the median time of `work` on the wall clock; `work` waits for the device itself."""
    times_s = []
    for number in range(WARM_UPS + MAX_RUNS):
        started_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - started_s)
        if number >= WARM_UPS + _num_runs(times_s[-1], budget_s):
            break
    return statistics.median(times_s[WARM_UPS:])


def _num_runs(step_s: float, budget_s: float) -> int:
    return max(3, min(MAX_RUNS, int(budget_s / step_s)))


def _against(floor_s: float, seconds: dict[str, float]) -> dict[str, float]:
    figures = {f"{name}_ms": value * 1e3 for name, value in seconds.items()}
    return figures | {"floor_ms": floor_s * 1e3, "over_floor": min(seconds.values()) / floor_s}
