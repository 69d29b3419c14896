"""Properties of the GPU that launches depend on."""

from __future__ import annotations

from functools import cache

import torch


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """A GPU's compute capability. A CPU, where the interpreter runs, counts as 9.0, which has everything we use."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


@cache
def num_processors(device: torch.device) -> int:
    """The number of a GPU's streaming multiprocessors. A CPU, where only tests run, counts as a small GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
