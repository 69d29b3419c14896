"""The initial cost model: loaded if this machine has served this model before, else fitted to a few measured steps."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from engine.cache_directory import cache_directory
from engine.core.cost_model import CostModel, StepShape
from engine.core.plan import RowStart, StepPlan
from engine.core.terms import SamplingParams
from engine.runner.base import ModelRunner, RunnerInfo, RunnerRestarted

log = logging.getLogger("engine")

# (rows that decode, their context, tokens of a chunk, its start). Small steps come first, as a slow machine may have
# time for no others.
SHAPES = (
    (1, 64, 0, 0), (0, 0, 32, 0), (4, 256, 0, 0), (1, 64, 64, 0), (8, 64, 0, 0), (4, 256, 64, 256), (0, 0, 128, 0),
    (16, 256, 0, 0), (16, 256, 128, 0), (32, 64, 0, 0), (0, 0, 256, 0), (16, 1024, 0, 0), (16, 256, 128, 1024),
    (64, 256, 0, 0), (32, 256, 256, 0), (0, 0, 512, 0), (64, 1024, 64, 0), (128, 256, 0, 0), (256, 256, 0, 0),
    (64, 256, 512, 512), (0, 0, 1024, 1024), (0, 0, 2048, 0),
)  # fmt: skip

MAX_ROUNDS = 20


def first_cost_model(
    model: str, runner: ModelRunner, max_tokens: int, budget_s: float, clock: Callable[[], float]
) -> CostModel:
    """Load the stored coefficients, or fit them to steps measured on an idle runner for about `budget_s`.

    The steps write K and V to arbitrary slots, so the KV memory must still be unused.
    """
    stored = _path(model, runner.info)
    if stored is not None and stored.exists():
        try:
            return CostModel.from_learned(json.loads(stored.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is not a valid cost model (%s); measuring again", stored, error)
    cost = CostModel()
    plans = list(_plans(runner.info, max_tokens))
    if plans and budget_s > 0:
        with suppress(RunnerRestarted):  # then the model learns as it serves
            _measure(plans, runner, cost, budget_s, clock)
    return cost


def _measure(
    plans: list[tuple[StepPlan, StepShape]],
    runner: ModelRunner,
    cost: CostModel,
    budget_s: float,
    clock: Callable[[], float],
) -> None:
    for plan in (plans[0][0], plans[1][0]):
        runner.execute(plan)  # the first step of each kind compiles kernels
    end_s = clock() + budget_s
    for number in range(MAX_ROUNDS):
        for plan, shape in plans:
            if not number:
                runner.execute(plan)  # the first step of its size allocates buffers
            started_s = clock()
            runner.execute(plan)
            elapsed_s = clock() - started_s
            cost.observe(shape, elapsed_s)
            if clock() + elapsed_s >= end_s:
                return


def store_cost_model(model: str, info: RunnerInfo, cost: CostModel) -> None:
    """Store the coefficients for the next start. A failure is only logged."""
    path = _path(model, info)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(cost.learned()))
        temporary.replace(path)
    except OSError as error:
        log.info("the cost model is not stored for the next start: %s", error)


def _path(model: str, info: RunnerInfo) -> Path | None:
    """The file for this model, device, weights and version in the user's cache directory, or None without a home."""
    root = cache_directory()
    if root is None:
        return None
    try:
        version = metadata.version("bros-batch")
    except metadata.PackageNotFoundError:
        version = "unknown"
    kind = (model, info.device, info.dtype, info.quantization, os.cpu_count(), version)
    name = hashlib.sha256(repr(kind).encode()).hexdigest()[:24]
    return root / "cost-models" / f"{name}.json"


def _plans(info: RunnerInfo, max_tokens: int) -> Iterator[tuple[StepPlan, StepShape]]:
    """Yield steps of those shapes that this runner can compute."""
    num_slots = info.num_blocks * info.block_size
    for num_decoding, context, chunk, start in SHAPES:
        num_rows = num_decoding + (chunk > 0)
        total = num_decoding + chunk
        longest = max(context + 1, start + chunk)
        fits = num_rows <= info.max_num_seqs and total <= max_tokens and longest <= info.max_model_len
        if fits and max(context, start) + total <= num_slots:
            yield _plan(info, num_decoding, context, chunk, start)


def _plan(
    info: RunnerInfo, num_decoding: int, context: int, chunk: int, start: int
) -> tuple[StepPlan, StepShape]:
    """Build a step whose rows all read the same first slots, and write their new tokens to separate later slots."""
    starts = [context] * num_decoding + [start] * (chunk > 0)
    counts = [1] * num_decoding + [chunk] * (chunk > 0)
    total, rows = sum(counts), range(len(counts))
    read = max(context, start)
    shape = StepShape()
    for first, count in zip(starts, counts, strict=True):
        shape.add_chunk(first, count)
    token_ids = [i * 7919 % info.vocab_size for i in range(max(total, read + 1))]
    greedy = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    plan = StepPlan(
        rows=list(rows),
        starts=starts,
        counts=counts,
        samples=[True] * len(counts),
        token_ids=token_ids[:total],
        slots=list(range(read, read + total)),
        row_starts=[
            RowStart(row, f"profile-{row}", token_ids[: starts[row] + 1], 1, list(range(starts[row])), greedy)
            for row in rows
        ],
    )
    return plan, shape
