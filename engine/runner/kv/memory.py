"""The tensors of KV memory on the device, and how many slots fit into the memory of a device and its host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

# The share of a machine's free memory that KV may take on a CPU; the rest is for activations and other programs.
CPU_MEMORY_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer keeps per token, and how many tokens it looks back (None: to the start)."""

    num_heads: int  # of queries
    num_kv_heads: int
    key_size: int
    value_size: int
    window: int | None


@dataclass(frozen=True, slots=True)
class LayerCache:
    """K and V of one layer, one row per slot."""

    k: torch.Tensor  # [num_slots, Hkv, D]
    v: torch.Tensor  # [num_slots, Hkv, Dv]
    window: int | None


def allocate_kv(
    layers: Mapping[int, LayerShape], num_slots: int, dtype: torch.dtype, device: torch.device
) -> dict[int, LayerCache]:
    """Allocates zeroed K and V for every layer, by layer index."""
    return {
        index: LayerCache(
            _zeros((num_slots, layer.num_kv_heads, layer.key_size), dtype, device),
            _zeros((num_slots, layer.num_kv_heads, layer.value_size), dtype, device),
            layer.window,
        )
        for index, layer in layers.items()
    }


def _zeros(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    # The zeros are written here. Pages that an operating system has only promised are taken one by one as steps first
    # write to them, which slowed bulk down by a fifth until all were taken, and that may fail later instead of now.
    # numpy asks for huge pages, which torch does not: reading scattered blocks then takes a sixth less time.
    memory = np.empty(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).zero_().view(dtype).view(shape)


def bytes_per_slot(layers: Mapping[int, LayerShape], dtype: torch.dtype) -> int:
    """The size of one token's K and V in all layers."""
    elements = sum(layer.num_kv_heads * (layer.key_size + layer.value_size) for layer in layers.values())
    return elements * dtype.itemsize


def num_blocks_on_cpu(slot_bytes: int, block_size: int, max_num_seqs: int, max_model_len: int) -> int:
    """As many blocks as all rows together can fill, or as many as the free memory allows if that is less."""
    wanted = max_num_seqs * -(-max_model_len // block_size)
    affordable = int(_available_bytes() * CPU_MEMORY_SHARE) // (slot_bytes * block_size)
    return max(1, min(wanted, affordable))


def num_blocks_on_gpu(slot_bytes: int, block_size: int, utilization: float, other_bytes: int) -> int:
    """As many blocks as fit into the free part of `utilization` of the GPU's memory, less `other_bytes`."""
    free, total = torch.cuda.mem_get_info()
    budget = free - int(total * (1 - utilization)) - other_bytes
    return max(0, budget // (slot_bytes * block_size))


def num_host_slots(slot_bytes: int, num_slots: int, device: torch.device) -> int:
    """As many host slots as the device has slots, or as many as the free memory allows if that is less.

    On a CPU the `num_slots` of the device take part of the same memory, and half of the remainder stays free.
    """
    budget = int(_available_bytes() * CPU_MEMORY_SHARE)
    if device.type == "cpu":
        budget = (budget - num_slots * slot_bytes) // 2
    return min(num_slots, max(0, budget // slot_bytes))


def _available_bytes() -> int:
    """The host memory that is available without swapping."""
    import psutil  # not installed on a GPU host that is only measured, which has numpy, torch and Triton

    return int(psutil.virtual_memory().available)
