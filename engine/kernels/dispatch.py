"""Chooses the backend of attention and of copies of slots for a device."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Literal, Protocol, assert_never

import torch

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.cpu import attention as cpu
from engine.kernels.cpu.slots import CpuSlotCopier
from engine.kernels.layout import StepLayout
from engine.kernels.reference import attention as reference
from engine.kernels.reference.slots import TorchSlotCopier


class AttentionOp(Protocol):
    """Attention of one layer in one step. `engine.kernels.reference.attention` defines shapes and results."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        layout: StepLayout,
        options: AttentionOptions,
    ) -> torch.Tensor: ...


class SlotCopier(Protocol):
    """Copies K and V of all layers between slots and rows of bytes. `engine.kernels.reference.slots` defines how."""

    bytes_per_slot: int

    def gather(self, slots: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor: ...

    def scatter(self, slots: torch.Tensor, staging: torch.Tensor) -> None: ...


Backend = Literal["cpu", "triton", "reference"]


def backend_of(device: torch.device) -> Backend:
    """The fastest backend that runs on `device`. Triton is imported only where it is used, since not every system has
    it (torch's CUDA builds bring it)."""
    if device.type == "cpu":
        return "cpu"
    return "triton" if device.type == "cuda" and importlib.util.find_spec("triton") else "reference"


def attention_op(device: torch.device, backend: Backend | None = None) -> AttentionOp:
    """The attention op of `backend`, by default that of `device`. TRITON_INTERPRET=1 lets Triton run on a CPU too."""
    match backend or backend_of(device):
        case "cpu":
            return cpu.attention
        case "reference":
            return reference.attention
        case "triton":
            from engine.kernels.triton import attention as triton_attention

            return triton_attention.attention
        case other:
            assert_never(other)


class LayerKV(Protocol):
    """K [num_slots, Hkv, D] and V [num_slots, Hkv, Dv] of one layer."""

    @property
    def k(self) -> torch.Tensor: ...

    @property
    def v(self) -> torch.Tensor: ...


def slot_copier(caches: Mapping[int, LayerKV], backend: Backend | None = None) -> SlotCopier:
    """A copier for the slots of all layers' `caches`, in their order."""
    pairs = [(cache.k, cache.v) for cache in caches.values()]
    if not pairs:
        return TorchSlotCopier(pairs)
    match backend or backend_of(pairs[0][0].device):
        case "cpu":
            return CpuSlotCopier(pairs)
        case "reference":
            return TorchSlotCopier(pairs)
        case "triton":
            from engine.kernels.triton.slots import TritonSlotCopier

            return TritonSlotCopier(pairs)
        case other:
            assert_never(other)


def programs_at_once(
    num_heads: int, dtype: torch.dtype, caches: Mapping[int, LayerKV], backend: Backend | None = None
) -> tuple[int, int]:
    """How many shares of contexts of single-token rows, and how many tiles of chunks, the device computes at once in a
    model of `num_heads` query heads. 0: its backend divides contexts by itself."""
    first = next(iter(caches.values()), None)
    if first is None or (backend or backend_of(first.k.device)) != "triton":
        return 0, 0
    from engine.kernels.triton.decode_attention import shares_at_once
    from engine.kernels.triton.prefill_attention import tiles_at_once

    return shares_at_once(first.k.shape[1], first.k), tiles_at_once(num_heads, dtype, first.k, first.v)
