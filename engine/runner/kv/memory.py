"""KV memory: how many slots fit, and the tensors themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from engine.runner.model.attention import LayerCache, LayerShape

# Of the memory a machine has free, what KV may take on a CPU: the rest is for the model's activations and for others.
CPU_MEMORY_SHARE = 0.4


def allocate_kv(
    layers: Mapping[int, LayerShape], num_slots: int, dtype: torch.dtype, device: torch.device
) -> dict[int, LayerCache]:
    """Zeroed K and V of every layer, by layer index."""
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
    # Zeros are written, not only asked for: those that an operating system promises are taken page by page as steps
    # first write to them, which slowed bulk down by a fifth until all were, and may fail then instead of now. numpy
    # asks for huge pages, which torch does not: reading scattered blocks then takes a sixth less time.
    memory = np.empty(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).zero_().view(dtype).view(shape)


def bytes_per_slot(layers: Mapping[int, LayerShape], dtype: torch.dtype) -> int:
    """What one token's K and V take in all layers."""
    elements = sum(layer.num_kv_heads * (layer.key_size + layer.value_size) for layer in layers.values())
    return elements * dtype.itemsize


def num_blocks_on_cpu(slot_bytes: int, block_size: int, max_num_seqs: int, max_model_len: int) -> int:
    """As many blocks as all rows could fill, or as the free memory allows."""
    wanted = max_num_seqs * -(-max_model_len // block_size)
    affordable = int(_available_bytes() * CPU_MEMORY_SHARE) // (slot_bytes * block_size)
    return max(1, min(wanted, affordable))


def num_blocks_on_gpu(slot_bytes: int, block_size: int, utilization: float, activation_bytes: int) -> int:
    """What is free on the GPU up to `utilization` of all its memory, less what a forward pass needs for itself."""
    free, total = torch.cuda.mem_get_info()
    budget = free - int(total * (1 - utilization)) - activation_bytes
    return max(0, budget // (slot_bytes * block_size))


def num_host_slots(slot_bytes: int, num_slots: int, device: torch.device) -> int:
    """As many as the device has, or as the memory that a CPU's KV may take allows. On a CPU `num_slots` come out of
    that memory too, and half of what they leave stays free."""
    budget = int(_available_bytes() * CPU_MEMORY_SHARE)
    if device.type == "cpu":
        budget = (budget - num_slots * slot_bytes) // 2
    return min(num_slots, max(0, budget // slot_bytes))


def _available_bytes() -> int:
    """Host memory that can be had without swapping."""
    import psutil  # a GPU host that is only measured has numpy, torch and triton

    return int(psutil.virtual_memory().available)
