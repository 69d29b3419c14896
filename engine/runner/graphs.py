"""CUDA graphs of steps: the whole forward pass is one launch.

A graph is a recording. It reads and writes the tensors that it was captured with, and every number that Python computed
during the capture is part of it. So a graph reads a static vector that is laid out as by `step_inputs.pack` for certain
sizes, and a step is padded to the smallest of the captured sizes that holds it:

    4 rows of a token   token_ids 7 9 3 0 | positions .. | slots 31 4 60 -1 | token_rows 2 5 0 P | rows 2 5 0 -1 | ...
                                        ^ padding: row -1 with count 0 to kernels, slot -1, slot-table row P

There are sizes for rows of one token each, and for any rows of up to so many tokens in total. Kernels skip rows and
slots of -1, and the output for the tokens of padding is not read. Grids cannot change either, so programs take their
shares of contexts from a list in the vector.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.runner.step_arrays import StepArrays, StepSizes
from engine.runner.step_inputs import StepInputs, StepTensors, pack

log = logging.getLogger("engine.graphs")

# The most rows of a graph of single tokens, and the most tokens of any graph. Without a graph, longer steps take longer
# to compute than to launch, but the next step has to be decided that much earlier.
LARGEST, LARGEST_MIXED = 512, 2048
# A step of more tokens is no faster as a graph, unless the model is small.
_LONG = 1024
# Capturing ends after this long, with the graphs that there are by then.
MAX_CAPTURE_S = 60.0


def step_shapes(max_rows: int, max_tokens: int) -> list[list[StepSizes]]:
    """The kinds of steps that have graphs, as `StepGraphs` takes them."""
    mixed = mixed_shapes(max_rows, max_tokens)
    is_long = [shape.tokens > _LONG for shape in mixed]
    num_short = is_long.count(False)
    return [single_shapes(max_rows), mixed[:num_short], mixed[num_short:]]


def single_shapes(max_rows: int) -> list[StepSizes]:
    """Sizes of steps of up to `max_rows` rows of one token, but at most `LARGEST`, in ascending order.

    They are so close that padding costs little: a weight is read once for all rows, and matrix units compute 8 or 16
    rows at a time anyway.
    """
    last = min(max_rows, LARGEST)
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, LARGEST + 1, 32)]
    sizes = [*(size for size in steps if size < last), *([last] if last > 0 else [])]
    return [StepSizes.of_singles(size) for size in sizes]


def mixed_shapes(max_rows: int, max_tokens: int) -> list[StepSizes]:
    """Sizes of steps of up to `max_tokens` tokens, but at most `LARGEST_MIXED`, in ascending order."""
    steps = [16, 32, *range(64, LARGEST_MIXED + 1, 64)]
    smaller = [size for size in steps if size < max_tokens]
    sizes = [*smaller, *steps[len(smaller) : len(smaller) + 1]]
    return [StepSizes.of_tokens(size, max_rows, LARGEST) for size in sizes] if max_rows > 0 else []


class Graph(Protocol):
    """A captured forward pass."""

    def replay(self) -> None:
        """Launches what was captured on the current stream; it runs on what its tensors contain by then."""

    def release(self) -> None:
        """Releases its memory. It must not be replayed afterwards."""


class GraphBackend(Protocol):
    """Makes graphs that share memory: running one destroys what another computed."""

    def warm_up(self, function: Callable[[], object]) -> None:
        """Runs `function` in the way in which it will be captured."""

    def capture(self, function: Callable[[], object]) -> Graph:
        """Captures what `function` launches, without running it. Raises RuntimeError if it does something that cannot
        be captured, such as reading a value from the device."""

    def bytes_taken(self) -> int:
        """The device memory taken since the backend was made."""


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Graph
    wanted_rows: torch.Tensor  # [W], a view of the static vector


class StepGraphs:
    """Captured forward passes for steps of certain sizes."""

    def __init__(
        self,
        forward: Callable[[StepTensors], torch.Tensor],
        slot_table: torch.Tensor,  # [max_rows + 1, max_model_len] int32; the last row is for padding
        shapes: Sequence[Sequence[StepSizes]],
        budget_bytes: int,
        backend: GraphBackend,
    ) -> None:
        """`shapes` are the sizes of each kind of step in ascending order, the most important kind first. The first has
        the step that wants the most logits.

        Captures each kind from the largest down, so that smaller graphs reuse the memory of larger ones, until
        `budget_bytes` of device memory or `MAX_CAPTURE_S` are spent. Steps that no captured graph holds run without a
        graph.
        """
        self._forward = forward
        self._slot_table = slot_table
        self._backend = backend
        self._graphs: dict[StepSizes, _Captured] = {}
        longest = max((shape.total for kind in shapes for shape in kind), default=0)
        self._vector = torch.zeros(longest, dtype=torch.int64, device=slot_table.device)
        self._logits = torch.empty(0)
        self._until_s = time.perf_counter() + MAX_CAPTURE_S
        with _no_collection():
            for kind in shapes:
                self._capture_kind(kind, budget_bytes)
        if not self._graphs:
            self._logits = torch.empty(0)
        # Those that were captured; of the same number of tokens, rows of one token come first.
        self.shapes = tuple(sorted(self._graphs, key=lambda shape: (shape.tokens, shape.tiles)))
        log.info(
            "%d CUDA graphs of up to %d tokens take %d MB",
            len(self._graphs), max((shape.tokens for shape in self.shapes), default=0),
            self._backend.bytes_taken() >> 20,
        )  # fmt: skip

    def size_for(self, step: StepArrays, num_wanted: int) -> StepSizes | None:
        """The sizes to pad `step` to, or None if no graph computes it. `num_wanted` of its rows sample."""
        if not num_wanted:
            return None
        sizes = step.sizes(num_wanted)
        return next((shape for shape in self.shapes if shape.holds(sizes)), None)

    def run(self, inputs: StepInputs) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns the logits [n, V] and slot-table rows [n] of the wanted tokens of a step that was packed with
        `padded=size_for(...)`. The next call overwrites both.

        Returns None if the graph cannot be replayed. It is not used again, and the step has to be computed without it.
        Raises ValueError for inputs of other sizes.
        """
        captured = self._graphs.get(inputs.sizes)
        if captured is None:
            raise ValueError(f"no graph was captured for {inputs.sizes}")
        with torch.inference_mode():
            self._vector[: inputs.sizes.total].copy_(inputs.vector, non_blocking=True)
            try:
                captured.graph.replay()
            except RuntimeError:
                # It is released at the end, since an earlier replay of it may be under way.
                self.shapes = tuple(shape for shape in self.shapes if shape != inputs.sizes)
                log.exception(
                    "a CUDA graph of %d tokens cannot be replayed; such steps run without it from now on",
                    inputs.sizes.tokens,
                )
                return None
            return self._logits[: inputs.num_wanted], captured.wanted_rows[: inputs.num_wanted]

    def close(self) -> None:
        """Releases the graphs. The device must have finished all of them."""
        for captured in self._graphs.values():
            captured.graph.release()
        self._graphs, self.shapes, self._logits = {}, (), torch.empty(0)

    # Capturing ------------------------------------------------------------------------------------------

    def _capture_kind(self, kind: Sequence[StepSizes], budget_bytes: int) -> None:
        has_any = False
        for shape in reversed(kind):
            if time.perf_counter() > self._until_s:
                log.warning("no more CUDA graphs, since capturing took %.0f s", MAX_CAPTURE_S)
                return
            if not self._graphs:
                self._logits = torch.empty(0)  # that of a larger graph, whose capture failed
            elif shape.wanted > len(self._logits):
                continue
            try:
                graph = self._capture(shape)
            except torch.OutOfMemoryError as error:
                log.warning("no memory for a CUDA graph of %d tokens: %s", shape.tokens, error)
            except RuntimeError as error:
                log.warning(
                    "no CUDA graphs of up to %d tokens, because the model fails in one: %s",
                    shape.tokens,
                    str(error).partition("\n")[0],
                    exc_info=True,
                )
                return
            else:
                taken = self._backend.bytes_taken()
                if taken <= budget_bytes:
                    self._graphs[shape] = _Captured(graph, self._step(shape).wanted_rows)
                    has_any = True
                    continue
                graph.release()
                log.warning(
                    "no CUDA graph of %d tokens: with it graphs would take %d MB, more than the limit of %d MB",
                    shape.tokens, taken >> 20, budget_bytes >> 20,
                )  # fmt: skip
            if has_any:
                return  # a smaller one takes as much, apart from the memory that graphs share

    def _capture(self, shape: StepSizes) -> Graph:
        """Captures a graph of these sizes. Until its first replay it runs on padding alone, so nothing is stored."""
        self._vector[: shape.total].copy_(self._padding(shape).vector)

        def compute() -> torch.Tensor:
            # Each time with a new layout, since kernels keep tensors of the pass in its scratch.
            return self._forward(self._step(shape))

        def compute_in_place() -> None:
            self._logits[: shape.wanted].copy_(compute())

        if not len(self._logits):
            found: list[torch.Tensor] = []
            self._backend.warm_up(lambda: found.append(compute()))
            self._logits = torch.empty_like(found[-1])
            found.clear()
        self._backend.warm_up(compute_in_place)
        return self._backend.capture(compute_in_place)

    def _step(self, shape: StepSizes) -> StepTensors:
        """Views of the static vector as a step of these sizes. The host's numbers are those of padding, since a
        decision that depends on them during a capture would become part of the graph."""
        host = np.zeros((4, shape.rows), dtype=np.int32)
        host[0], host[3] = -1, np.arange(shape.rows)
        return StepTensors.of(self._vector[: shape.total], shape, self._slot_table, host)

    def _padding(self, shape: StepSizes) -> StepInputs:
        """A step without rows, padded to these sizes."""
        nothing = np.zeros(0, dtype=np.int64)
        step = StepArrays(nothing, nothing, nothing, nothing, nothing.astype(bool), nothing, nothing)
        return pack(step, nothing, len(self._slot_table) - 1, pinned=False, padded=shape)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disables garbage collection, which might free a CUDA object during a capture and so end the capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
