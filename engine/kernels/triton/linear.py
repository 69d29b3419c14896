"""Products of few tokens with a weight matrix, in Triton: as fast as the weight can be read, which is all that counts.

A batch of one to some dozens of tokens reads each weight once and does next to nothing with it. So a program takes
a band of a weight's rows and a range of their columns, and keeps loads of the next blocks under way while the matrix
unit multiplies one. Bands alone are too few to draw all of a GPU's bandwidth where a weight is small; then the
columns are split among programs too, and their sums stay apart, in float32, for the next kernel to add up:

                      K, split in two                      parts [S, T, N]
                 +------------+------------+
    weight    N  | program    | program    |   band 0      part 0: band 0 | band 1 | ...
                 |  (0, 0)    |  (0, 1)    |               part 1: band 0 | band 1 | ...
                 +------------+------------+
                 |  (1, 0)    |  (1, 1)    |   band 1
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

import engine.kernels.triton.interpreter  # noqa: F401  (mends it, where kernels run in it)

# More tokens than this are for a product that reads the tokens in blocks too.
MAX_TOKENS = 64
# The parts of a product are written and read once more: eight are under 2% of what a weight's rows of 4096 take.
_MAX_SPLITS = 8
# Blocks of columns a program reads at least: fewer, and it ends before its pipeline is full.
_MIN_BLOCKS = 4
# The matrix unit's least number of columns that all of its instructions have.
_MIN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut up. `programs_a_processor` is how many fit on a multiprocessor side by side."""

    rows: int  # of the weight, a program
    columns: int  # of the weight, a block
    num_stages: int  # blocks in shared memory: one multiplied, the others under way
    programs_a_processor: int


# 64 rows are the matrix unit's height; 128 columns are 256 bytes of a row, two of a memory's sectors of 128. With three
# stages 64 rows have 32 KiB under way, three such programs 96 KiB: bandwidth times latency on an H200 (4.8 TB/s, about
# 0.8 us, 132 processors) is 29 KiB a processor, so that all are sure to draw what the memory gives.
TILINGS = (
    Tiling(64, 128, 3, 3),
    Tiling(128, 128, 3, 2),
    Tiling(64, 256, 3, 1),
)


@triton.jit(do_not_specialize=["num_tokens"])
def _linear_few_kernel(
    x_ptr,  # [T, K]
    weight_ptr,  # [N, K]
    bias_ptr,  # [N], where HAS_BIAS
    out_ptr,  # [S, T, N], written
    num_tokens,
    num_outputs,
    num_inputs,
    HAS_BIAS: tl.constexpr,
    IS_EVEN: tl.constexpr,  # K is a multiple of COLUMNS
    TOKENS: tl.constexpr,  # T or the next power of two
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Grid: (bands of N, S)
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tokens = tl.arange(0, TOKENS)
    columns = tl.arange(0, COLUMNS)
    num_blocks = tl.cdiv(num_inputs, COLUMNS)
    first = split * num_blocks // num_splits
    last = (split + 1) * num_blocks // num_splits
    # Past the end the last row is read once more, which needs no mask; nothing of it is stored.
    weights = (
        weight_ptr + tl.minimum(rows, num_outputs - 1).to(tl.int64)[:, None] * num_inputs + columns[None, :]
    )
    inputs = x_ptr + tl.minimum(tokens, num_tokens - 1)[:, None] * num_inputs + columns[None, :]
    total = tl.zeros([ROWS, TOKENS], dtype=tl.float32)
    for block in tl.range(first, last, num_stages=STAGES):
        start = block * COLUMNS
        if IS_EVEN:
            weight = tl.load(weights + start)
            x = tl.load(inputs + start)
        else:
            mask = (start + columns < num_inputs)[None, :]
            weight = tl.load(weights + start, mask=mask, other=0.0)
            x = tl.load(inputs + start, mask=mask, other=0.0)
        total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
    inside = rows < num_outputs
    if HAS_BIAS:
        bias = tl.load(bias_ptr + rows, mask=inside & (split == 0), other=0.0).to(tl.float32)
        total += bias[:, None]
    out = out_ptr + (split * num_tokens + tokens).to(tl.int64)[None, :] * num_outputs + rows[:, None]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (tokens < num_tokens)[None, :])


def linear_few(
    x: torch.Tensor,  # [T, K], T at most MAX_TOKENS
    weight: torch.Tensor,  # [N, K]
    bias: torch.Tensor | None,  # [N]
    tiling: Tiling,
    num_processors: int,
) -> torch.Tensor:  # [T, N], x's dtype, or [S, T, N] float32
    """x @ weight.T + bias, or the parts that add up to it. `num_processors` are the GPU's multiprocessors."""
    num_tokens, num_inputs = x.shape
    num_outputs = len(weight)
    if not 0 < num_tokens <= MAX_TOKENS:
        raise ValueError(f"{num_tokens} tokens: this product is for 1 to {MAX_TOKENS}")
    if weight.shape[1] != num_inputs or x.dtype != weight.dtype:
        raise ValueError(
            f"tokens {tuple(x.shape)} of {x.dtype} do not go with a weight {tuple(weight.shape)} of {weight.dtype}"
        )
    if not (x.is_contiguous() and weight.is_contiguous()):
        raise ValueError("tokens and weight must be contiguous: their rows are read end to end")
    splits = num_splits(num_outputs, num_inputs, tiling, num_processors)
    if splits == 1:
        out = torch.empty((num_tokens, num_outputs), dtype=x.dtype, device=x.device)
    else:
        out = torch.empty((splits, num_tokens, num_outputs), dtype=torch.float32, device=x.device)
    _linear_few_kernel[(triton.cdiv(num_outputs, tiling.rows), splits)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        num_tokens,
        num_outputs,
        num_inputs,
        HAS_BIAS=bias is not None,
        IS_EVEN=num_inputs % tiling.columns == 0,
        TOKENS=max(_MIN_TOKENS, triton.next_power_of_2(num_tokens)),
        ROWS=tiling.rows,
        COLUMNS=tiling.columns,
        STAGES=tiling.num_stages,
        num_warps=tiling.rows // 16,  # 16 rows a warp, 64 a group of four, are what the matrix unit takes
    )
    return out


def num_splits(num_outputs: int, num_inputs: int, tiling: Tiling, num_processors: int) -> int:
    """The most parts, a power of two, for which all programs run side by side and each has a few blocks."""
    num_bands = triton.cdiv(num_outputs, tiling.rows)
    num_blocks = triton.cdiv(num_inputs, tiling.columns)
    limit = min(
        _MAX_SPLITS, num_blocks // _MIN_BLOCKS, num_processors * tiling.programs_a_processor // num_bands
    )
    return 1 << max(0, limit.bit_length() - 1) if limit > 0 else 1
