"""How long a GPU computes, without the time that launching takes, measured by replaying a CUDA graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from engine.runner.cuda_graphs import CudaGraphs

_NUM_REPLAYS = 4


def replayed_s(work: Callable[[], object], *, num_replays: int = _NUM_REPLAYS) -> float:
    """The median seconds that the current GPU takes for all that `work` launches.

    A launch from Python can take several times as long as a small kernel, and how long depends on the host. So the work
    is captured once, and the replays are timed. The first of them does not count: it raises the GPU's clock rate.
    Raises RuntimeError if `work` cannot be captured, for example because it reads a value from the device.
    """
    graphs = CudaGraphs(torch.device("cuda", torch.cuda.current_device()))
    graphs.warm_up(work)
    graph = graphs.capture(work)
    times_s: list[float] = []
    for _ in range(1 + num_replays):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times_s.append(begin.elapsed_time(end) / 1000)
    graph.release()
    return statistics.median(times_s[1:])
