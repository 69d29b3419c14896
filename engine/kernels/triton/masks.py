"""Masks of logits on a GPU: each program handles a part of one row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Tokens per program: eight per thread of four warps, and 32 words of a mask.
_BLOCK = 1024
_NUM_WARPS = 4


@triton.jit
def _mask_kernel(
    logits_ptr,  # [n, V], rows `stride` apart; changed
    rows_ptr,  # [m] int64, indices into n
    words_ptr,  # [m, W] int32, rows `words_stride` apart
    num_tokens,  # V
    stride,
    words_stride,
    BLOCK: tl.constexpr,
):
    # Grid: (m, parts of a row)
    i = tl.program_id(0)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_token = tokens < num_tokens
    # 32 threads read the same word, which a warp does at once.
    words = tl.load(words_ptr + i.to(tl.int64) * words_stride + tokens // 32, mask=is_token, other=-1)
    is_masked = ((words >> (tokens % 32)) & 1) == 0
    row = tl.load(rows_ptr + i)
    # Only masked logits are written, and none is read.
    nothing = tl.full([BLOCK], float("-inf"), tl.float32)
    tl.store(logits_ptr + row * stride + tokens, nothing, mask=is_token & is_masked)


def apply_masks(
    logits: torch.Tensor,  # [n, V] on a GPU, changed
    rows: torch.Tensor,  # [m] int64, indices into n, none of them twice
    words: torch.Tensor,  # [m, >= V / 32] int32
    *,
    block: int = _BLOCK,
) -> None:
    """`engine.kernels.reference.masks.apply_masks`, without waiting for the GPU. `block` is a power of two."""
    vocab_size = logits.shape[1]
    if words.dtype != torch.int32 or words.shape[0] != len(rows) or 32 * words.shape[1] < vocab_size:
        raise ValueError(
            f"words must be int32 [{len(rows)}, >= {-(-vocab_size // 32)}], not {words.dtype} {list(words.shape)}"
        )
    if logits.stride(1) != 1 or words.stride(1) != 1:
        raise ValueError("the last dimension of logits and of words must be contiguous")
    if len(rows):
        _mask_kernel[(len(rows), triton.cdiv(vocab_size, block))](
            logits,
            rows,
            words,
            vocab_size,
            logits.stride(0),
            words.stride(0),
            BLOCK=block,
            num_warps=_NUM_WARPS,
        )
