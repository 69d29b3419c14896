"""How the attention kernels divide their work: the tile of one program, its warps and its pipeline stages.

The numbers were chosen by compiling for compute capabilities 8.0 and 9.0: no registers are spilled (except a few in
float32 with heads of 256), and on 9.0 no product waits for another one that it does not depend on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.kernels.layout import CHUNK_TILE_TOKENS
from engine.kernels.triton.attention_inputs import AttentionInputs, padded


@dataclass(frozen=True, slots=True)
class DecodeTiling:
    """The tile of a program that computes rows of one token."""

    block_g: int  # query heads
    block_n: int  # keys per iteration of its loop
    num_warps: int
    num_stages: int


def decode_tiling(elements: int, cache_bytes: int, computed_bytes: int, group: int) -> DecodeTiling:
    """`elements`: of one head's padded K and V of one token, each of `cache_bytes` in the cache and of `computed_bytes`
    in a product.

    The K and V of one iteration take at most 32 KiB in the dtype of products, or registers spill. Two or more
    iterations' K and V are being read: as many bytes as keep a GPU's memory busy with three such programs per
    multiprocessor, and no more than the 99 KiB of shared memory that every GPU since 8.0 has.
    """
    largest = 32768 // (elements * computed_bytes)
    block_n = max(16, min(64, 1 << (largest.bit_length() - 1) if largest else 0))
    return DecodeTiling(
        block_g=min(padded(group), 32),
        block_n=block_n,
        num_warps=4 if elements * computed_bytes <= 1024 else 8,
        num_stages=3 if block_n * elements * cache_bytes > 16384 else 4,
    )


def decode_tiling_of(inputs: AttentionInputs) -> DecodeTiling:
    return decode_tiling(
        inputs.constants["BLOCK_D"] + inputs.constants["BLOCK_DV"],
        inputs.k_cache.element_size(),
        inputs.q.element_size(),
        inputs.group,
    )


@dataclass(frozen=True, slots=True)
class PrefillTiling:
    """The tile of a program that computes rows of several tokens."""

    tokens: int  # queries
    heads: int
    block_n: int  # keys per iteration of its loop
    num_warps: int
    num_stages: int


def prefill_tiling(
    dtype: torch.dtype, as_bits: bool, widest: int, group: int, capability: tuple[int, int]
) -> PrefillTiling:
    """The largest tile that spills no registers, for heads padded to `widest`. At 128, the sums of two heads' values
    take half of the registers, so there is little choice."""
    if dtype is torch.float32:  # three products per product, of 4-byte numbers: a quarter of the tile
        return PrefillTiling(16, 1, 32 if widest <= 128 else 16, 4 if widest <= 128 else 8, 3)
    # Two heads share each read of K and V. A warpgroup of 4 warps computes 64 rows of a product at a time.
    heads = 2 if group % 2 == 0 else 1
    # Five stages: slots are read two iterations before their K and V, and those two iterations before they are used.
    if capability >= (9, 0):
        if widest > 128:
            return PrefillTiling(CHUNK_TILE_TOKENS, heads, 32, 8, 2)
        return PrefillTiling(CHUNK_TILE_TOKENS, heads, 64, 4 * heads, 5)
    # Before 9.0, products read operands from registers, and some GPUs have no more than 99 KiB of shared memory.
    if widest > 128:
        return PrefillTiling(CHUNK_TILE_TOKENS, 1, 16 if as_bits else 32, 8, 3)
    if as_bits:
        return PrefillTiling(CHUNK_TILE_TOKENS, heads, 32, 4 * heads, 3)
    return PrefillTiling(CHUNK_TILE_TOKENS, heads, 32 * heads, 4 * heads, 5)


def prefill_tiling_of(inputs: AttentionInputs) -> PrefillTiling:
    return prefill_tiling(
        inputs.q.dtype,
        inputs.constants["AS_BITS"],
        max(inputs.constants["BLOCK_D"], inputs.constants["BLOCK_DV"]),
        inputs.group,
        inputs.capability,
    )
