"""CUDA graphs by torch: the `GraphBackend` of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch

# Before a capture the same pass runs as usual, since kernels are compiled and libraries allocate their workspaces then,
# which a capture cannot contain. Once for that, and once to see that it runs when all of that has happened.
_WARM_UPS = 2


class CudaGraphs:
    """The `GraphBackend` of one GPU. It must be made, and its graphs replayed, on the thread and stream that launch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # Warm-ups and captures share a stream, since libraries keep a workspace per stream.
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
            # Other threads may call CUDA meanwhile; only this one is limited to what can be captured.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                function()
        except RuntimeError:
            # When a capture fails, torch ends it with an error, but neither restores the previous stream nor makes the
            # allocator stop using the pool.
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
