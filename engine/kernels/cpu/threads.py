"""The number of threads that the compiled CPU kernels run on."""

from __future__ import annotations

import numba
import torch


def use_threads(num_threads: int) -> int:
    """Makes the kernels run on `num_threads` threads, or on as many as numba has, and returns that number.

    Callers pass torch's own thread count, which stays as it is: numba's OpenMP pool sets the thread count of the OpenMP
    runtime, which it shares with torch, when it starts.
    """
    num_threads = min(num_threads, int(numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    before = torch.get_num_threads()
    numba.set_num_threads(num_threads)  # starts the pool
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
    return num_threads
