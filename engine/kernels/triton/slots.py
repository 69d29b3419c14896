"""Reads and writes of cache slots: storing a step's K and V, and copying slots of all layers in one launch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from engine.kernels.reference.slots import check_staging
from engine.kernels.triton.attention_inputs import FLOATS
from engine.kernels.triton.fp8 import FP8, to_fp8_bits

# Elements of K, and as many of V, that a program of `_store_kv` writes: each of its 128 threads writes 8 (16 bytes)
# twice.
_STORE_NUMBERS = 2048
# Slots, and bytes of one layer's K or V per slot, that a program of `_copy_slots` moves: each of its 128 threads moves
# 16 bytes four times.
_COPY_SLOTS = 4
_COPY_BYTES = 2048

_WORDS = {
    8: (torch.int64, tl.int64),
    4: (torch.int32, tl.int32),
    2: (torch.int16, tl.int16),
    1: (torch.int8, tl.int8),
}


@triton.jit
def _store_rows(
    x,  # [T, Hkv, D]
    cache,  # [num_slots, Hkv, D]; of uint8 if AS_BITS
    token,
    slot,
    head,  # [BLOCK_H]
    x_stride,
    x_head_stride,
    cache_stride,
    cache_head_stride,
    NUM_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    AS_BITS: tl.constexpr,
):
    d = tl.arange(0, BLOCK_D)
    mask = (head[:, None] < NUM_KV_HEADS) & (d[None, :] < D)
    numbers = tl.load(x + token * x_stride + head[:, None] * x_head_stride + d[None, :], mask=mask)
    if AS_BITS:
        numbers = to_fp8_bits(numbers.to(tl.float32))
    tl.store(
        cache + slot * cache_stride + head[:, None] * cache_head_stride + d[None, :],
        numbers.to(cache.dtype.element_ty),
        mask=mask,
    )


@triton.jit(do_not_specialize=["slot_mapping"])
def _store_kv(
    k,  # [T, Hkv, D]
    v,  # [T, Hkv, DV]
    k_cache,  # [num_slots, Hkv, D], written; of uint8 if AS_BITS
    v_cache,  # [num_slots, Hkv, DV], written
    slot_mapping,  # [T] int64
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    k_cache_stride,
    k_cache_head_stride,
    v_cache_stride,
    v_cache_head_stride,
    NUM_KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    AS_BITS: tl.constexpr,
):
    """Grid: (T, blocks of heads)."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + token)
    if slot < 0:  # padding
        return
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    _store_rows(
        k, k_cache, token, slot, head, k_stride, k_head_stride, k_cache_stride, k_cache_head_stride,
        NUM_KV_HEADS, D, BLOCK_D, AS_BITS,
    )  # fmt: skip
    _store_rows(
        v, v_cache, token, slot, head, v_stride, v_head_stride, v_cache_stride, v_cache_head_stride,
        NUM_KV_HEADS, DV, BLOCK_DV, AS_BITS,
    )  # fmt: skip


def store_kv(
    k: torch.Tensor,  # [T, Hkv, D]
    v: torch.Tensor,  # [T, Hkv, Dv]
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], written
    v_cache: torch.Tensor,  # [num_slots, Hkv, Dv], written
    slot_mapping: torch.Tensor,  # [T] int64, no slot twice; -1: not stored
) -> None:
    """`engine.kernels.reference.slots.store_kv` in one launch. Raises ValueError for shapes that do not match."""
    if k.shape[1:] != k_cache.shape[1:] or v.shape[1:] != v_cache.shape[1:]:
        raise ValueError(
            f"K and V of {list(k.shape)} and {list(v.shape)} do not fit caches of "
            f"{list(k_cache.shape)} and {list(v_cache.shape)}"
        )
    if not len(k) == len(v) == len(slot_mapping) or k.shape[1] != v.shape[1]:
        raise ValueError(
            f"K has {len(k)} tokens of {k.shape[1]} heads and V {len(v)} of {v.shape[1]}, for {len(slot_mapping)} slots"
        )
    if k_cache.dtype not in (*FLOATS, FP8) or v_cache.dtype is not k_cache.dtype:
        raise ValueError(
            f"caches of {k_cache.dtype} and {v_cache.dtype} cannot be written; they need one floating point dtype"
        )
    if k_cache.stride(2) != 1 or v_cache.stride(2) != 1:
        raise ValueError("the elements of a head must be contiguous in the caches")
    if not len(k):
        return
    k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (k, v))
    as_bits = k_cache.dtype is FP8
    if as_bits:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    _, num_kv_heads, size = k.shape
    size_v = v.shape[2]
    block_d, block_dv = triton.next_power_of_2(size), triton.next_power_of_2(size_v)
    block_h = min(triton.next_power_of_2(num_kv_heads), max(1, _STORE_NUMBERS // max(block_d, block_dv)))
    _store_kv[(len(k), triton.cdiv(num_kv_heads, block_h))](
        k, v, k_cache, v_cache, slot_mapping,
        *k.stride()[:2], *v.stride()[:2], *k_cache.stride()[:2], *v_cache.stride()[:2],
        NUM_KV_HEADS=num_kv_heads, D=size, DV=size_v, BLOCK_H=block_h, BLOCK_D=block_d, BLOCK_DV=block_dv,
        AS_BITS=as_bits, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["parts", "slots", "num_slots", "num_parts"])
def _copy_slots(
    parts,  # [3, P] int64: address of a cache's slot 0, bytes per slot, offset of those bytes in rows of `staging`
    slots,  # [n] int64
    staging,  # [n, bytes_per_slot / WORD_BYTES]
    num_slots,
    num_parts,
    staging_stride,
    TO_STAGING: tl.constexpr,
    WORD: tl.constexpr,  # the integer type in which memory is copied
    WORD_BYTES: tl.constexpr,
    ALIGNED_WORDS: tl.constexpr,  # everything that is moved begins and ends at a multiple of this many words
    SLOTS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Grid: (blocks of SLOTS slots, P, blocks of WORDS words of the longest part)."""
    part = tl.program_id(1)
    cache = tl.load(parts + part).to(tl.pointer_type(WORD))
    num_words = tl.load(parts + num_parts + part) // WORD_BYTES
    begin = tl.load(parts + 2 * num_parts + part) // WORD_BYTES
    # Tells the compiler what the table's creator knows about its numbers, so that loads and stores take 16 bytes.
    cache = tl.multiple_of(cache, ALIGNED_WORDS * WORD_BYTES)
    num_words = tl.multiple_of(num_words, ALIGNED_WORDS)
    begin = tl.multiple_of(begin, ALIGNED_WORDS)
    stride = tl.multiple_of(staging_stride.to(tl.int64), ALIGNED_WORDS)
    i = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    w = tl.program_id(2) * WORDS + tl.arange(0, WORDS)
    slot = tl.load(slots + i, mask=i < num_slots, other=-1)
    mask = (slot >= 0)[:, None] & (w[None, :] < num_words)
    in_cache = cache + slot[:, None] * num_words + w[None, :]
    in_staging = staging + i[:, None] * stride + begin + w[None, :]
    if TO_STAGING:
        tl.store(in_staging, tl.load(in_cache, mask=mask), mask=mask)
    else:
        tl.store(in_cache, tl.load(in_staging, mask=mask), mask=mask)


class TritonSlotCopier:
    """`engine.kernels.reference.slots.TorchSlotCopier` in one launch per copy, which reads the addresses of all layers'
    caches from a table.

    Raises ValueError for caches that are not contiguous or not on one device.
    """

    def __init__(self, caches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._caches = [cache for pair in caches for cache in pair]  # keeps the addresses valid
        for cache in self._caches:
            if not cache.is_contiguous() or cache.device != self._caches[0].device:
                raise ValueError(
                    "caches whose slots are copied together must be contiguous and on one device"
                )
        sizes = [cache[0].numel() * cache.element_size() for cache in self._caches]
        self.bytes_per_slot = sum(sizes)
        if not sizes:
            return
        begins = [sum(sizes[:part]) for part in range(len(sizes))]
        addresses = [cache.data_ptr() for cache in self._caches]
        self._parts = torch.tensor([addresses, sizes, begins]).to(self._caches[0].device)  # [3, P]
        alignment = math.gcd(16, *sizes, *addresses)
        self._word_bytes = min(8, alignment)
        num_words = max(sizes) // self._word_bytes
        block = min(triton.next_power_of_2(num_words), _COPY_BYTES // self._word_bytes)
        self._num_blocks = triton.cdiv(num_words, block)
        self._constants = {
            "WORD": _WORDS[self._word_bytes][1],
            "WORD_BYTES": self._word_bytes,
            "ALIGNED_WORDS": alignment // self._word_bytes,
            "SLOTS": _COPY_SLOTS,
            "WORDS": block,
        }

    def gather(
        self,
        slots: torch.Tensor,  # [n] int64, on the caches' device; -1: skipped
        out: torch.Tensor | None = None,  # [n, bytes_per_slot] uint8
    ) -> torch.Tensor:  # [n, bytes_per_slot] uint8
        """Copies `slots` to rows of bytes; a row for slot -1 is not written."""
        if out is None:
            out = torch.empty(len(slots), self.bytes_per_slot, dtype=torch.uint8, device=slots.device)
        self._copy(slots, out, to_staging=True)
        return out

    def scatter(
        self,
        slots: torch.Tensor,  # [n] int64, no slot twice; -1: skipped
        staging: torch.Tensor,  # [n, bytes_per_slot] uint8, on the caches' device
    ) -> None:
        """Writes rows that `gather` returned to `slots`."""
        self._copy(slots, staging, to_staging=False)

    def _copy(self, slots: torch.Tensor, staging: torch.Tensor, *, to_staging: bool) -> None:
        check_staging(slots, staging, self.bytes_per_slot)
        if not staging.numel():
            return
        word_dtype, _ = _WORDS[self._word_bytes]
        if staging.data_ptr() % math.gcd(16, self.bytes_per_slot):
            raise ValueError("a staging buffer must begin at a multiple of 16 bytes")
        num_parts = len(self._caches)
        _copy_slots[(triton.cdiv(len(slots), _COPY_SLOTS), num_parts, self._num_blocks)](
            self._parts, slots, staging.view(word_dtype), len(slots), num_parts,
            self.bytes_per_slot // self._word_bytes,
            TO_STAGING=to_staging, num_warps=4, **self._constants,
        )  # fmt: skip
