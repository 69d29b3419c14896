"""How much a program of the attention kernels does at a time.

Chosen by compiling for compute capabilities 8.0 and 9.0: nothing spills (but a little in float32 with heads of 256),
and on 9.0 no product waits for another that it does not need.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.kernels.layout import CHUNK_TILE_TOKENS
from engine.kernels.triton.cached_rows import padded


@dataclass(frozen=True, slots=True)
class SingleShape:
    """How much a program does at a time."""

    block_g: int  # query heads
    block_n: int  # keys of a turn of its loop
    num_warps: int
    num_stages: int


def single_shape(elements: int, cache_bytes: int, computed_bytes: int, group: int) -> SingleShape:
    """`elements`: of one head's K and V of one token, padded; each has so many bytes in the cache and in a product.

    One turn's K and V take 32 KiB as products at most, or registers spill. Two turns' or more are being read: so many
    bytes as a GPU's memory needs to be busy with three such programs a processor, and no more shared memory than the 99
    KiB that every GPU since 8.0 has.
    """
    largest = 32768 // (elements * computed_bytes)
    block_n = max(16, min(64, 1 << (largest.bit_length() - 1) if largest else 0))
    return SingleShape(
        block_g=min(padded(group), 32),
        block_n=block_n,
        num_warps=4 if elements * computed_bytes <= 1024 else 8,
        num_stages=3 if block_n * elements * cache_bytes > 16384 else 4,
    )


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """How much a program does at a time."""

    tokens: int  # queries
    heads: int
    block_n: int  # keys of a turn of its loop
    num_warps: int
    num_stages: int


def chunk_shape(
    dtype: torch.dtype, as_bits: bool, widest: int, group: int, capability: tuple[int, int]
) -> ChunkShape:
    """The largest that spill no registers, for heads padded to `widest`. Sums of two heads' values take half of the
    registers at 128, so there is little to choose from."""
    if dtype is torch.float32:  # three products make one, out of 4 bytes a number: a quarter of a tile
        return ChunkShape(16, 1, 32 if widest <= 128 else 16, 4 if widest <= 128 else 8, 3)
    # Two heads share each read of K and V. A warpgroup of 4 warps computes 64 rows of a product at a time.
    heads = 2 if group % 2 == 0 else 1
    # Five stages: slots are read two turns before their K and V, and those two turns before they are used.
    if capability >= (9, 0):
        if widest > 128:
            return ChunkShape(CHUNK_TILE_TOKENS, heads, 32, 8, 2)
        return ChunkShape(CHUNK_TILE_TOKENS, heads, 64, 4 * heads, 5)
    # Before 9.0 products read operands from registers, and shared memory may be no more than 99 KiB.
    if widest > 128:
        return ChunkShape(CHUNK_TILE_TOKENS, 1, 16 if as_bits else 32, 8, 3)
    if as_bits:
        return ChunkShape(CHUNK_TILE_TOKENS, heads, 32, 4 * heads, 3)
    return ChunkShape(CHUNK_TILE_TOKENS, heads, 32 * heads, 4 * heads, 5)
