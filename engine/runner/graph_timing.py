"""How long a GPU computes, without the time that launching takes, measured by replaying a CUDA graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

_NUM_REPLAYS = 4


@torch.inference_mode()
def replayed_s(work: Callable[[], object], *, num_replays: int = _NUM_REPLAYS) -> float:
    """The median seconds that the current GPU takes for all that `work` launches.

    A launch from Python can take several times as long as a small kernel, and how long depends on the host. So the work
    is captured once, and the replays are timed. The first of them does not count: it raises the GPU's clock rate.
    Raises RuntimeError if `work` cannot be captured, for example because it reads a value from the device.
    """
    main, stream = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(main)
    with torch.cuda.stream(stream):
        work()  # kernels are compiled and libraries allocate their workspaces, which a capture cannot contain
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()
    except RuntimeError:
        torch.cuda.set_stream(main)  # torch does not return to it by itself when a capture fails
        raise
    times_s: list[float] = []
    for _ in range(1 + num_replays):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times_s.append(begin.elapsed_time(end) / 1000)
    graph.reset()
    return statistics.median(times_s[1:])
