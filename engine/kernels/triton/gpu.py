"""Properties of the GPU that launches depend on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class Processors:
    """A GPU's streaming multiprocessors: how many there are, and the shared memory of each."""

    count: int
    shared_bytes: int


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """A GPU's compute capability. A CPU, where the interpreter runs, counts as 9.0, which has everything we use."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


@cache
def processors_of(device: torch.device) -> Processors:
    """The multiprocessors of a GPU. A CPU, where only tests run, counts as a small H100."""
    if device.type != "cuda":
        return Processors(8, 228 * 1024)
    properties = torch.cuda.get_device_properties(device)
    return Processors(properties.multi_processor_count, properties.shared_memory_per_multiprocessor)
