"""CUDA graphs for steps whose rows all compute one token: the whole forward pass is one launch.

A graph is a recording. It reads and writes the tensors that it was captured with, and every number that Python computed
during the capture is part of it. So a graph of n rows reads a static vector that is laid out as by `step_inputs.pack`
for n rows, and a step of fewer rows is padded to the next size that was captured:

    vector of n = 4     token_ids 7 9 3 0 | positions .. | slots 31 4 60 -1 | token_rows 2 5 0 P | rows 2 5 0 -1 | ...
                                        ^ padding: row -1 with count 0 to kernels, slot -1, slot-table row P

Kernels skip rows and slots of -1, and the output for the tokens of padding is not read. Grids cannot change either, so
the layout says only that no context is longer than the slot table is wide.
"""

from __future__ import annotations

import gc
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.runner.step_inputs import StepArrays, StepInputs, StepSizes, StepTensors, pack

log = logging.getLogger("engine.graphs")

# The most rows of a graph. With more, computing takes longer than launching, so that a graph gains nothing.
LARGEST = 512


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """The numbers of rows for which there are graphs, in ascending order."""

    sizes: tuple[int, ...]

    @staticmethod
    def up_to(max_rows: int) -> GraphSizes:
        """Sizes for up to `max_rows` rows, but at most `LARGEST`.

        They are so close that padding costs little: a weight is read once for all rows, and matrix units compute 8 or
        16 rows at a time anyway.
        """
        last = min(max_rows, LARGEST)
        steps = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, LARGEST + 1, 32)]
        return GraphSizes((*(size for size in steps if size < last), *([last] if last > 0 else [])))

    def padded(self, num_rows: int) -> int | None:
        """The smallest size that holds `num_rows` rows, or None."""
        index = bisect_left(self.sizes, num_rows)
        return self.sizes[index] if num_rows > 0 and index < len(self.sizes) else None


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
    wanted_rows: torch.Tensor  # [size], a view of the static vector


class DecodeGraphs:
    """Graphs of the function `forward`, one per size. Made once at start; used from one thread, on one stream.

    `forward` maps a step of n rows and n tokens to logits [n, V], and updates the slot table. Each capture calls it
    with a new `StepTensors`, whose tensors are views of the static vector. Of everything else that it uses, only the
    contents of tensors may change from step to step, not their addresses.
    """

    def __init__(
        self,
        forward: Callable[[StepTensors], torch.Tensor],
        slot_table: torch.Tensor,  # [max_rows + 1, max_model_len] int32; the last row is for padding
        sizes: GraphSizes,
        budget_bytes: int,
        backend: GraphBackend,
    ) -> None:
        """Captures from the largest size down, so that smaller graphs reuse the memory of larger ones, until
        `budget_bytes` of device memory are spent. Steps of sizes that were not captured run without a graph."""
        self._forward = forward
        self._slot_table = slot_table
        self._backend = backend
        self._graphs: dict[int, _Captured] = {}  # by size
        largest = max(sizes.sizes, default=0)
        self._vector = torch.zeros(
            StepSizes.of_singles(largest).total, dtype=torch.int64, device=slot_table.device
        )
        self._logits = torch.empty(0)
        with _no_collection():
            self._capture_all(sizes, budget_bytes)
        self.sizes = GraphSizes(tuple(sorted(self._graphs)))  # those that were captured

    def size_for(self, step: StepArrays, num_wanted: int) -> int | None:
        """The size to pad `step` to, or None if no graph computes it. `num_wanted` of its rows sample."""
        is_whole = num_wanted == len(step.rows) == len(step.token_ids)
        return self.sizes.padded(len(step.rows)) if is_whole else None

    def run(self, inputs: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the logits [R, V] and slot-table rows [R] of the R rows that were packed with `size=size_for(...)`.

        The next call overwrites both. Raises ValueError for inputs of another shape.
        """
        num_rows, size = inputs.host.shape[1], inputs.sizes.rows
        if size not in self._graphs or inputs.sizes != StepSizes.of_singles(size):
            raise ValueError(f"no graph was captured for {inputs.sizes}; sizes are {self.sizes.sizes}")
        if not 0 < num_rows <= size or not (inputs.host[2] == 1).all():
            raise ValueError(f"a graph of {size} rows computes one token for each of at most {size} rows")
        with torch.inference_mode():
            self._vector[: inputs.sizes.total].copy_(inputs.vector, non_blocking=True)
            captured = self._graphs[size]
            captured.graph.replay()
            return self._logits[:num_rows], captured.wanted_rows[:num_rows]

    def close(self) -> None:
        """Releases the graphs. The device must have finished all of them."""
        for captured in self._graphs.values():
            captured.graph.release()
        self._graphs, self.sizes, self._logits = {}, GraphSizes(()), torch.empty(0)

    # Capturing ------------------------------------------------------------------------------------------

    def _capture_all(self, sizes: GraphSizes, budget_bytes: int) -> None:
        for size in reversed(sizes.sizes):
            if not self._graphs:
                self._logits = torch.empty(0)  # that of a larger graph, whose capture failed
            try:
                graph = self._capture(size)
            except torch.OutOfMemoryError as error:
                log.warning("no memory for a CUDA graph of %d rows: %s", size, error)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                log.warning(
                    "no CUDA graphs of up to %d rows, because the model fails in one: %s",
                    size,
                    reason,
                    exc_info=True,
                )
                break
            else:
                taken = self._backend.bytes_taken()
                if taken <= budget_bytes:
                    self._graphs[size] = _Captured(graph, self._step(size).wanted_rows)
                    continue
                graph.release()
                log.warning(
                    "no CUDA graph of %d rows: with it graphs would take %d MB, more than the limit of %d MB",
                    size, taken >> 20, budget_bytes >> 20,
                )  # fmt: skip
            if self._graphs:
                break  # a smaller one takes as much, apart from the memory that graphs share
        if not self._graphs:
            self._logits = torch.empty(0)
        log.info(
            "%d CUDA graphs of up to %d rows take %d MB",
            len(self._graphs), max(self._graphs, default=0), self._backend.bytes_taken() >> 20,
        )  # fmt: skip

    def _capture(self, size: int) -> Graph:
        """Captures a graph of `size` rows. Until its first replay it runs on padding alone, so nothing is stored."""
        padding = self._padding(size)
        self._vector[: padding.sizes.total].copy_(padding.vector)

        def compute() -> torch.Tensor:
            # Each time with a new layout, since kernels keep tensors of the pass in its scratch.
            return self._forward(self._step(size))

        def compute_in_place() -> None:
            self._logits[:size].copy_(compute())

        if not len(self._logits):
            found: list[torch.Tensor] = []
            self._backend.warm_up(lambda: found.append(compute()))
            self._logits = torch.empty_like(found[-1])
            found.clear()
        self._backend.warm_up(compute_in_place)
        return self._backend.capture(compute_in_place)

    def _step(self, size: int) -> StepTensors:
        """Views of the static vector as a step of `size` rows. The host's numbers are those of padding, since a
        decision that depends on them during a capture would become part of the graph."""
        sizes = StepSizes.of_singles(size)
        host = np.zeros((4, size), dtype=np.int32)
        host[0], host[3] = -1, np.arange(size)
        longest = self._slot_table.shape[1]
        return StepTensors.of(self._vector[: sizes.total], sizes, self._slot_table, host, longest)

    def _padding(self, size: int) -> StepInputs:
        """A step without rows, padded to `size`."""
        nothing = np.zeros(0, dtype=np.int64)
        step = StepArrays(nothing, nothing, nothing, nothing, nothing.astype(bool), nothing, nothing)
        return pack(step, nothing, len(self._slot_table) - 1, pinned=False, size=size)


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
