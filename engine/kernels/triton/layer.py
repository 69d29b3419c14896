"""What a decoder layer computes between its matrix products and its attention, in Triton: one launch per function.

Shapes: T packed tokens, H the model's width, I the width of its gated layer, D the head size. Numbers are rounded to
the model's dtype exactly where transformers' modules round them, so that 16-bit models compute what they were trained
to compute. A product [T, N] may be given as parts [S, T, N] in float32, which the reader adds up (see `linear`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.triton.fp8 import FP8, FP8_MAX, converts_fp8, to_fp8_bits

# Elements of 16 bits that a thread loads at once: 16 bytes, the widest load.
_LOADED_AT_ONCE = 8
# Outputs of the gated layer per program: few enough that one token's 14336 use more than a dozen multiprocessors.
_GATED_BLOCK = 1024
# The most heads per program of the rotation: of eight heads of size 128, each of 64 threads loads 16 bytes per half.
_ROTATED_HEADS = 8
_MAX_WARPS = 16
# These arguments are parts of a step's one vector, so the number of tokens decides whether they begin at a multiple of
# 16 bytes. Triton would compile a kernel for either case, one of them in the middle of serving.
_FROM_VECTOR = ["positions_ptr", "slots_ptr", "picked_ptr"]


@triton.jit
def _rounded(values, dtype: tl.constexpr):
    return values.to(dtype).to(tl.float32)


@triton.jit
def _summed(base, offsets, mask, part_stride, PARTS: tl.constexpr, dtype: tl.constexpr):
    """The sum of a product's parts, which lie `part_stride` apart: rounded to `dtype`, as float32."""
    total = tl.load(base + offsets, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        total += tl.load(base + part * part_stride + offsets, mask=mask, other=0.0)
    return _rounded(total, dtype)


@triton.jit
def _stored(values, dtype: tl.constexpr):
    """Converts float32 `values` to a cache's `dtype`. uint8 means float8 e4m3 on a GPU that does not convert it."""
    if dtype == tl.uint8:
        return to_fp8_bits(values)
    if dtype == tl.float8e4nv:
        values = tl.minimum(tl.maximum(values, -FP8_MAX), FP8_MAX)
    return values.to(dtype)


@triton.jit(do_not_specialize=_FROM_VECTOR)
def _add_rms_norm_kernel(
    x_ptr,  # [PARTS, T, SIZE]
    residual_ptr,  # [T, SIZE], written if PARTS > 0 and not IS_PICKED
    weight_ptr,  # [SIZE]
    picked_ptr,  # [rows of out] int64, if IS_PICKED
    out_ptr,  # [rows of out, SIZE], written
    part_stride,
    epsilon,
    PARTS: tl.constexpr,
    IS_PICKED: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,  # SIZE, rounded up to a power of two
):
    # Grid: (rows of out,)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(picked_ptr + row) if IS_PICKED else row
    columns = tl.arange(0, BLOCK)
    mask = columns < SIZE
    offsets = source * SIZE + columns
    values = tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if PARTS > 0:
        values += _summed(x_ptr, offsets, mask, part_stride, PARTS, dtype)
        values = _rounded(values, dtype)
        if not IS_PICKED:  # a token may be picked twice, and the sum is not read again
            tl.store(residual_ptr + offsets, values.to(dtype), mask=mask)
    inverse = tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + epsilon)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    normed = _rounded(values * inverse, dtype) * weight
    tl.store(out_ptr + row * SIZE + columns, normed.to(dtype), mask=mask)


@triton.jit
def _silu_gated_kernel(
    gate_up_ptr,  # [PARTS, T, 2 SIZE]: each token's gates, then their partners
    out_ptr,  # [T, SIZE], written
    part_stride,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Grid: (T, blocks of SIZE)
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < SIZE
    offsets = token * 2 * SIZE + columns
    gate = _summed(gate_up_ptr, offsets, mask, part_stride, PARTS, dtype)
    partner = _summed(gate_up_ptr, offsets + SIZE, mask, part_stride, PARTS, dtype)
    decay = tl.exp(-tl.abs(gate))  # never overflows
    activated = _rounded(gate * tl.where(gate < 0.0, decay, 1.0) / (1.0 + decay), dtype)
    tl.store(out_ptr + token * SIZE + columns, (activated * partner).to(dtype), mask=mask)


@triton.jit(do_not_specialize=_FROM_VECTOR)
def _rotate_and_store_kernel(
    qkv_ptr,  # [PARTS, T, (HEADS + 2 KV_HEADS) D]: heads of Q, then of K, then of V
    positions_ptr,  # [T] int64
    cos_ptr,  # [max positions, D / 2]
    sin_ptr,  # [max positions, D / 2]
    q_norm_ptr,  # [D], if HAS_NORMS
    k_norm_ptr,  # [D], if HAS_NORMS
    slots_ptr,  # [T] int64, -1: not stored
    k_cache_ptr,  # [num_slots, KV_HEADS, D], written
    v_cache_ptr,  # [num_slots, KV_HEADS, D], written
    q_ptr,  # [T, HEADS, D], written
    part_stride,
    epsilon,
    PARTS: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,  # D / 2
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,  # HALF, rounded up to a power of two
):
    # Grid: (T, blocks of Q's heads, then of K's, then of V's); no block has heads of two of these
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    D: tl.constexpr = 2 * HALF
    Q_BLOCKS: tl.constexpr = (HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    KV_BLOCKS: tl.constexpr = (KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    is_q = block < Q_BLOCKS
    is_v = block >= Q_BLOCKS + KV_BLOCKS
    first_block = tl.where(is_q, 0, tl.where(is_v, Q_BLOCKS + KV_BLOCKS, Q_BLOCKS))
    first_head = tl.where(is_q, 0, tl.where(is_v, HEADS + KV_HEADS, HEADS))
    head = (block - first_block) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)  # among those of Q, K or V
    column = tl.arange(0, BLOCK_HALF)
    in_half = column < HALF
    mask = (head < tl.where(is_q, HEADS, KV_HEADS))[:, None] & in_half[None, :]
    within = head[:, None] * D + column[None, :]  # the low halves; the high halves are HALF further on
    start = token * (HEADS + 2 * KV_HEADS) * D + first_head * D
    low = _summed(qkv_ptr, start + within, mask, part_stride, PARTS, dtype)
    high = _summed(qkv_ptr, start + HALF + within, mask, part_stride, PARTS, dtype)
    slot = tl.load(slots_ptr + token)
    stored = mask & (slot >= 0)
    destination = slot * KV_HEADS * D + within
    kind: tl.constexpr = k_cache_ptr.dtype.element_ty
    if is_v:
        tl.store(v_cache_ptr + destination, _stored(low, kind), mask=stored)
        tl.store(v_cache_ptr + destination + HALF, _stored(high, kind), mask=stored)
    else:
        # Read once per head, although they are the same for all heads: that costs some L1 cache bandwidth, but no
        # exchange between threads.
        columns = column[None, :] + tl.zeros([BLOCK_HEADS, 1], tl.int32)
        if HAS_NORMS:
            if is_q:
                weight_low = tl.load(q_norm_ptr + columns, mask=mask, other=0.0)
                weight_high = tl.load(q_norm_ptr + HALF + columns, mask=mask, other=0.0)
            else:
                weight_low = tl.load(k_norm_ptr + columns, mask=mask, other=0.0)
                weight_high = tl.load(k_norm_ptr + HALF + columns, mask=mask, other=0.0)
            inverse = tl.rsqrt(tl.sum(low * low + high * high, axis=1) / D + epsilon)[:, None]
            low = _rounded(_rounded(low * inverse, dtype) * weight_low.to(tl.float32), dtype)
            high = _rounded(_rounded(high * inverse, dtype) * weight_high.to(tl.float32), dtype)
        angle = tl.load(positions_ptr + token) * HALF + columns
        cos = tl.load(cos_ptr + angle, mask=mask, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + angle, mask=mask, other=0.0).to(tl.float32)
        # Both products are rounded before they are added, so that no fused multiply-add takes an unrounded one.
        rotated_low = (_rounded(low * cos, dtype) - _rounded(high * sin, dtype)).to(dtype)
        rotated_high = (_rounded(high * cos, dtype) + _rounded(low * sin, dtype)).to(dtype)
        if is_q:
            q = q_ptr + token * HEADS * D + within
            tl.store(q, rotated_low, mask=mask)
            tl.store(q + HALF, rotated_high, mask=mask)
        else:
            tl.store(k_cache_ptr + destination, _stored(rotated_low.to(tl.float32), kind), mask=stored)
            tl.store(
                k_cache_ptr + destination + HALF, _stored(rotated_high.to(tl.float32), kind), mask=stored
            )


def add_rms_norm(
    x: torch.Tensor | None,  # [T, H], or [S, T, H] float32
    residual: torch.Tensor,  # [T, H], written if there is an x and no `picked`
    weight: torch.Tensor,  # [H]
    epsilon: float,
    out: torch.Tensor,  # [T, H], or [n, H] with `picked`; written
    *,
    picked: torch.Tensor | None = None,  # [n] int64, indices into T
) -> None:
    """residual += x; out = rms_norm(residual) * weight (arXiv 1910.07467), of the picked tokens only if given."""
    size = residual.shape[-1]
    num_parts, part_stride = (0, 0) if x is None else _parts(x, residual.shape)
    if weight.shape != (size,) or out.shape != (len(residual if picked is None else picked), size):
        raise ValueError(
            f"a norm of {tuple(weight.shape)} cannot take residuals {tuple(residual.shape)} to {tuple(out.shape)}: "
            "widths or numbers of tokens differ"
        )
    _check_contiguous(residual, weight, out, *(() if picked is None else (picked,)))
    if not len(out):
        return
    block = triton.next_power_of_2(size)
    _add_rms_norm_kernel[(len(out),)](
        residual if x is None else x,
        residual,
        weight,
        residual if picked is None else picked,
        out,
        part_stride,
        epsilon,
        PARTS=num_parts,
        IS_PICKED=picked is not None,
        SIZE=size,
        BLOCK=block,
        num_warps=_num_warps(block),
    )


def silu_gated(
    gate_up: torch.Tensor,  # [T, 2 I], or [S, T, 2 I] float32: each token's gates, then their partners
    out: torch.Tensor,  # [T, I], written
) -> None:
    """SwiGLU's activation (arXiv 2002.05202): silu(gate) * partner."""
    num_tokens, size = out.shape
    num_parts, part_stride = _parts(gate_up, (num_tokens, 2 * size))
    _check_contiguous(out)
    if not num_tokens:
        return
    block = min(_GATED_BLOCK, triton.next_power_of_2(size))
    _silu_gated_kernel[(num_tokens, triton.cdiv(size, block))](
        gate_up, out, part_stride, PARTS=num_parts, SIZE=size, BLOCK=block, num_warps=_num_warps(block)
    )


def rotate_and_store(
    qkv: torch.Tensor,  # [T, (Hq + 2 Hkv) D], or [S, T, (Hq + 2 Hkv) D] float32: heads of Q, then of K, then of V
    positions: torch.Tensor,  # [T] int64
    cos: torch.Tensor,  # [max positions, D / 2]
    sin: torch.Tensor,  # [max positions, D / 2]
    q_norm: torch.Tensor | None,  # [D] weight of an RMSNorm of each head before its rotation
    k_norm: torch.Tensor | None,  # [D]
    epsilon: float,
    slots: torch.Tensor,  # [T] int64, no slot twice; -1: nothing is stored
    k_cache: torch.Tensor,  # [num_slots, Hkv, D], written at `slots`; the model's dtype, or float8 e4m3
    v_cache: torch.Tensor,  # [num_slots, Hkv, D], written at `slots`
    q_out: torch.Tensor,  # [T, Hq, D], written
) -> None:
    """Applies the rotary position embedding to Q and K (arXiv 2104.09864; it pairs a head's halves), stores K and V."""
    num_tokens, num_heads, size = q_out.shape
    num_kv_heads = k_cache.shape[1]
    num_parts, part_stride = _parts(qkv, (num_tokens, (num_heads + 2 * num_kv_heads) * size))
    if size % 2 or k_cache.shape != v_cache.shape or k_cache.shape[2] != size or cos.shape[1] != size // 2:
        raise ValueError(
            f"heads of size {size} cannot be rotated by {tuple(cos.shape)} cosines into caches "
            f"{tuple(k_cache.shape)} and {tuple(v_cache.shape)}"
        )
    if k_cache.dtype != v_cache.dtype:
        raise ValueError(
            f"the K cache is {k_cache.dtype} and the V cache {v_cache.dtype}; they must have one dtype"
        )
    if (q_norm is None) != (k_norm is None):
        raise ValueError("either both Q and K have a head norm, or neither")
    _check_contiguous(positions, cos, sin, slots, k_cache, v_cache, q_out)
    if not num_tokens:
        return
    if k_cache.dtype is FP8 and not converts_fp8(k_cache.device):
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    block_heads = min(_ROTATED_HEADS, triton.next_power_of_2(num_heads))
    block_half = triton.next_power_of_2(size // 2)
    num_blocks = triton.cdiv(num_heads, block_heads) + 2 * triton.cdiv(num_kv_heads, block_heads)
    _rotate_and_store_kernel[(num_tokens, num_blocks)](
        qkv, positions, cos, sin, cos if q_norm is None else q_norm, cos if k_norm is None else k_norm,
        slots, k_cache, v_cache, q_out, part_stride, epsilon,
        PARTS=num_parts, HAS_NORMS=q_norm is not None, HEADS=num_heads, KV_HEADS=num_kv_heads, HALF=size // 2,
        BLOCK_HEADS=block_heads, BLOCK_HALF=block_half, num_warps=_num_warps(block_heads * block_half),
    )  # fmt: skip


def _parts(product: torch.Tensor, shape: tuple[int, ...]) -> tuple[int, int]:
    """The number of parts of a product of `shape`, and the distance between them in elements."""
    if product.shape[-2:] != shape or not product.is_contiguous():
        raise ValueError(f"a product {tuple(product.shape)} is not a contiguous {tuple(shape)} nor its parts")
    if product.dim() == 2:
        return 1, 0
    if product.dtype is not torch.float32:
        raise ValueError(
            f"parts of a product must be float32, not {product.dtype}, since rounded parts do not add up"
        )
    return len(product), product.stride(0)


def _check_contiguous(*tensors: torch.Tensor) -> None:
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(
                f"a tensor {tuple(tensor.shape)} is not contiguous; these kernels take contiguous tensors"
            )


def _num_warps(block: int) -> int:
    """The number of warps with which a block is one load of 16 bytes per thread."""
    return max(1, min(_MAX_WARPS, block // (32 * _LOADED_AT_ONCE)))
