"""CUDA graphs of steps whose rows all compute one token: the whole forward pass is launched as one.

A graph is a recording. It reads and writes the tensors that it was captured with, and every number that Python computed
meanwhile is part of it. So a graph of n rows reads one static vector laid out as `step_inputs.pack` does it for n rows;
a step of fewer rows is padded to the next size there is:

    vector of n = 4     token_ids 7 9 3 0 | positions .. | slots 31 4 60 -1 | token_rows 2 5 0 P | rows 2 5 0 -1 | ...
                                        ^ padding: row -1 with count 0 to kernels, slot -1, slot-table row P

Kernels skip rows and slots of -1; what the pass does with the token of a padded row nobody reads. Grids cannot change
either, so the layout says of each row's context only that it is no longer than the slot table is wide.
"""

from __future__ import annotations

import gc
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.runner.step_inputs import Sizes, StepArrays, StepInputs, StepTensors, pack

log = logging.getLogger("engine.graphs")

# Rows beyond which launching takes less time than computing, so that a graph gains nothing.
LARGEST = 512
# Before a capture the same pass runs as usual: kernels are compiled and libraries take their workspaces, which cannot
# happen in a capture. Once for that, and once to see that it runs with all of it there.
_WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """Numbers of rows, ascending."""

    sizes: tuple[int, ...]

    @staticmethod
    def up_to(max_rows: int) -> GraphSizes:
        """Sizes for up to `max_rows` rows, but at most `LARGEST`. They are so close that padding costs little: a weight
        is read once for all rows, and matrix units compute 8 or 16 of them at a time anyway."""
        last = min(max_rows, LARGEST)
        steps = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, LARGEST + 1, 32)]
        return GraphSizes((*(size for size in steps if size < last), *([last] if last > 0 else [])))

    def padded(self, num_rows: int) -> int | None:
        """The least size that holds `num_rows`, if one does."""
        index = bisect_left(self.sizes, num_rows)
        return self.sizes[index] if num_rows > 0 and index < len(self.sizes) else None


class Graph(Protocol):
    def replay(self) -> None:
        """Gives what was captured to the current stream, to run on what its tensors hold by then."""

    def release(self) -> None:
        """Gives its memory back; it is not replayed again."""


class GraphBackend(Protocol):
    """Makes graphs that share memory: what one of them computed is gone when another has run."""

    def warm_up(self, function: Callable[[], object]) -> None:
        """Runs `function` as it will be captured."""

    def capture(self, function: Callable[[], object]) -> Graph:
        """What `function` gives to the device, not run yet. Raises RuntimeError where that cannot be captured, such as
        a pass that looks at values on the device."""

    def bytes_taken(self) -> int:
        """Device memory that was taken since this was made."""


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: Graph
    wanted_rows: torch.Tensor  # [size], of the static vector


class DecodeGraphs:
    """Graphs of `forward`, one a size. Made once at start; used from one thread, on one stream.

    `forward` maps a step [n rows, n tokens] to logits [n, V]; the change of the slot table belongs to it. It is called
    with a new `StepTensors` for each capture, whose tensors are views of the static vector. Nothing else that it uses
    may change from step to step but the contents of tensors that stay where they are.
    """

    def __init__(
        self,
        forward: Callable[[StepTensors], torch.Tensor],
        slot_table: torch.Tensor,  # [max_rows + 1, max_model_len] int32; the last row is padding's
        sizes: GraphSizes,
        budget_bytes: int,
        backend: GraphBackend,
    ) -> None:
        """Captures from the largest size down, so that the smaller find the memory of the larger there, until
        `budget_bytes` of device memory are spent. What could not be captured runs without."""
        self._forward = forward
        self._slot_table = slot_table
        self._backend = backend
        self._graphs: dict[int, _Captured] = {}  # by size
        largest = max(sizes.sizes, default=0)
        self._vector = torch.zeros(
            Sizes.of_singles(largest).total, dtype=torch.int64, device=slot_table.device
        )
        self._logits = torch.empty(0)
        with _no_collection():
            self._capture_all(sizes, budget_bytes)
        self.sizes = GraphSizes(tuple(sorted(self._graphs)))  # of the graphs there are

    def size_for(self, step: StepArrays, num_wanted: int) -> int | None:
        """What to pad `step` to, or None: no graph computes it. `num_wanted` of its rows sample."""
        is_whole = num_wanted == len(step.rows) == len(step.token_ids)
        return self.sizes.padded(len(step.rows)) if is_whole else None

    def run(self, inputs: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [R, V] and slot-table rows [R] of the R rows that were packed with `size=size_for(...)`. Both are of
        memory that the next call overwrites. Raises ValueError for inputs of another shape."""
        num_rows, size = inputs.host.shape[1], inputs.sizes.rows
        if size not in self._graphs or inputs.sizes != Sizes.of_singles(size):
            raise ValueError(f"no graph was captured for {inputs.sizes}; sizes are {self.sizes.sizes}")
        if not 0 < num_rows <= size or not (inputs.host[2] == 1).all():
            raise ValueError(f"a graph of {size} rows computes one token of each of at most as many")
        with torch.inference_mode():
            self._vector[: inputs.sizes.total].copy_(inputs.vector, non_blocking=True)
            captured = self._graphs[size]
            captured.graph.replay()
            return self._logits[:num_rows], captured.wanted_rows[:num_rows]

    def close(self) -> None:
        """The device is done with them; none is run again."""
        for captured in self._graphs.values():
            captured.graph.release()
        self._graphs, self.sizes, self._logits = {}, GraphSizes(()), torch.empty(0)

    # Capturing ------------------------------------------------------------------------------------------

    def _capture_all(self, sizes: GraphSizes, budget_bytes: int) -> None:
        for size in reversed(sizes.sizes):
            if not self._graphs:
                self._logits = torch.empty(0)  # a larger graph's that is not there
            try:
                graph = self._capture(size)
            except torch.OutOfMemoryError as error:
                log.warning("no memory for a CUDA graph of %d rows: %s", size, error)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                log.warning("no CUDA graphs of up to %d rows, for the model fails in one: %s", size, reason)
                break
            else:
                taken = self._backend.bytes_taken()
                if taken <= budget_bytes:
                    self._graphs[size] = _Captured(graph, self._step(size).wanted_rows)
                    continue
                graph.release()
                log.warning(
                    "no CUDA graph of %d rows: with it graphs would take %d MB, and may take %d MB",
                    size, taken >> 20, budget_bytes >> 20,
                )  # fmt: skip
            if self._graphs:
                break  # a smaller one takes as much besides the memory that it shares
        if not self._graphs:
            self._logits = torch.empty(0)
        log.info(
            "%d CUDA graphs of up to %d rows take %d MB",
            len(self._graphs), max(self._graphs, default=0), self._backend.bytes_taken() >> 20,
        )  # fmt: skip

    def _capture(self, size: int) -> Graph:
        """A graph of `size` rows. It runs on padding alone until it is replayed, so nothing is stored."""
        padding = self._padding(size)
        self._vector[: padding.sizes.total].copy_(padding.vector)

        def compute() -> torch.Tensor:
            # A layout of its own each time: a backend keeps tensors of the pass in its scratch.
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
        """Views of the static vector as a step of `size` rows. The host's numbers are those of padding: whoever decides
        by them at a capture decides for ever."""
        sizes = Sizes.of_singles(size)
        host = np.zeros((4, size), dtype=np.int32)
        host[0], host[3] = -1, np.arange(size)
        longest = self._slot_table.shape[1]
        return StepTensors.of(self._vector[: sizes.total], sizes, self._slot_table, host, longest)

    def _padding(self, size: int) -> StepInputs:
        """A step of no rows, padded to `size`."""
        nothing = np.zeros(0, dtype=np.int64)
        step = StepArrays(nothing, nothing, nothing, nothing, nothing.astype(bool), nothing, nothing)
        return pack(step, nothing, len(self._slot_table) - 1, pinned=False, size=size)


class CudaGraphs:
    """A `GraphBackend` of one GPU; made, and its graphs replayed, on the thread and stream that launch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # Warm-ups and captures share a stream: libraries keep their workspaces by stream.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._free_before = self._free_bytes()

    @torch.inference_mode()
    def warm_up(self, function: Callable[[], object]) -> None:
        main = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                function()
        main.wait_stream(self._stream)

    @torch.inference_mode()
    def capture(self, function: Callable[[], object]) -> CudaGraph:
        graph = torch.cuda.CUDAGraph()
        main = torch.cuda.current_stream(self._device)
        try:
            # Other threads may call CUDA meanwhile; only this one must keep to what can be captured.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                function()
        except RuntimeError:
            # torch ends a capture that failed with an error, and then neither goes back to the stream there was before
            # nor takes the pool out of the allocator's use.
            torch.cuda.set_stream(main)
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(main.device_index, self._pool)
            raise
        return CudaGraph(graph)

    def bytes_taken(self) -> int:
        return max(0, self._free_before - self._free_bytes())

    def _free_bytes(self) -> int:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self._device)[0])


class CudaGraph:
    __slots__ = ("_graph",)

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph

    def replay(self) -> None:
        self._graph.replay()

    def release(self) -> None:
        self._graph.reset()


@contextmanager
def _no_collection() -> Iterator[None]:
    """A collection amid a capture might free something of CUDA's, which would end the capture."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
