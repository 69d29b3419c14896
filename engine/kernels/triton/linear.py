"""Products of few tokens with a weight matrix, in Triton, at the speed at which the weight can be read.

A batch of up to a few dozen tokens reads each weight once and computes very little with it. So each program takes a
band of the weight's rows and a range of their columns, and keeps loads of the next blocks under way while the matrix
unit multiplies one. If a weight is small, it has too few bands to use all of a GPU's bandwidth. Then the columns are
split among programs too, and their sums are stored as separate parts, in float32, which the next kernel adds up:

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

from engine.kernels.triton.gpu import Processors

# With more tokens, a product must read the tokens in blocks too.
MAX_TOKENS = 64
# The parts of a product are written and read once more: eight are less than 2% of a weight with rows of 4096.
_MAX_SPLITS = 8
# The least number of column blocks per program: with fewer, it ends before its pipeline is full.
_MIN_BLOCKS = 4
# The smallest number of columns that all of the matrix unit's instructions support.
_MIN_TOKENS = 16
# The shared memory of each program that CUDA takes for itself.
_RESERVED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is divided among programs."""

    rows: int  # of the weight, per program
    columns: int  # of the weight, per block
    num_stages: int  # blocks in shared memory: one being multiplied, the others being loaded

    def shared_bytes(self, num_tokens: int, itemsize: int) -> int:
        """What a program takes of its multiprocessor's shared memory."""
        return self.num_stages * self.columns * (self.rows + _padded(num_tokens)) * itemsize + _RESERVED_BYTES


# 64 rows are the matrix unit's height; 128 columns are 256 bytes of a row, two cache lines of 128. With three stages,
# 64 rows keep 32 KiB under way and three such programs 96 KiB. Bandwidth times latency on an H200 (4.8 TB/s, about
# 0.8 us, 132 multiprocessors) is 29 KiB per multiprocessor, so that they use all of the memory's bandwidth.
TILINGS = (
    Tiling(64, 128, 3),
    Tiling(128, 128, 3),
    Tiling(64, 256, 3),
)


@dataclass(frozen=True, slots=True)
class Scales:
    """What a product of float8 numbers is multiplied by, and the dtype of the result."""

    tokens: torch.Tensor  # [T, 1] float32
    weight: torch.Tensor  # [N] float32
    dtype: torch.dtype


@triton.jit(do_not_specialize=["num_tokens"])
def _linear_few_kernel(
    x_ptr,  # [T, K]
    weight_ptr,  # [N, K]
    bias_ptr,  # [N], where HAS_BIAS
    x_scales_ptr,  # [T], where HAS_SCALES
    weight_scales_ptr,  # [N], where HAS_SCALES
    out_ptr,  # [S, T, N], written
    num_tokens,
    num_outputs,
    num_inputs,
    HAS_BIAS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_EVEN: tl.constexpr,  # K is a multiple of COLUMNS
    TOKENS: tl.constexpr,  # T, rounded up to a power of two
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
    # Beyond the end, the last row is read again, which needs no mask; the result is not stored.
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
        if HAS_SCALES:
            # The matrix unit's own sums of float8 products have 14 bits, so only those of a block stay there.
            total = tl.dot(weight, tl.trans(x), total, max_num_imprecise_acc=COLUMNS)
        else:
            total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
    inside = rows < num_outputs
    if HAS_SCALES:
        weight_scales = tl.load(weight_scales_ptr + rows, mask=inside, other=0.0)
        x_scales = tl.load(x_scales_ptr + tokens, mask=tokens < num_tokens, other=0.0)
        total *= weight_scales[:, None] * x_scales[None, :]
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
    processors: Processors,
    scales: Scales | None = None,
) -> torch.Tensor:  # [T, N], x's dtype or that of the scales, or [S, T, N] float32
    """x @ weight.T + bias, or S parts that add up to it. `processors` are those of the GPU.

    If x and the weight are float8, the product is multiplied by their scales before the bias is added.
    """
    num_tokens, num_inputs = x.shape
    num_outputs = len(weight)
    if not 0 < num_tokens <= MAX_TOKENS:
        raise ValueError(f"got {num_tokens} tokens; this product takes 1 to {MAX_TOKENS}")
    if weight.shape[1] != num_inputs or x.dtype != weight.dtype:
        raise ValueError(
            f"tokens {tuple(x.shape)} of {x.dtype} do not match a weight {tuple(weight.shape)} of {weight.dtype}"
        )
    if not (x.is_contiguous() and weight.is_contiguous()):
        raise ValueError("tokens and weight must be contiguous")
    per_processor = processors.shared_bytes // tiling.shared_bytes(num_tokens, x.dtype.itemsize)
    splits = num_splits(num_outputs, num_inputs, tiling, processors.count * max(1, per_processor))
    if splits == 1:
        dtype = x.dtype if scales is None else scales.dtype
        out = torch.empty((num_tokens, num_outputs), dtype=dtype, device=x.device)
    else:
        out = torch.empty((splits, num_tokens, num_outputs), dtype=torch.float32, device=x.device)
    _linear_few_kernel[(triton.cdiv(num_outputs, tiling.rows), splits)](
        x,
        weight,
        weight if bias is None else bias,
        weight if scales is None else scales.tokens,
        weight if scales is None else scales.weight,
        out,
        num_tokens,
        num_outputs,
        num_inputs,
        HAS_BIAS=bias is not None,
        HAS_SCALES=scales is not None,
        IS_EVEN=num_inputs % tiling.columns == 0,
        TOKENS=_padded(num_tokens),
        ROWS=tiling.rows,
        COLUMNS=tiling.columns,
        STAGES=tiling.num_stages,
        num_warps=tiling.rows // 16,  # the matrix unit takes 16 rows per warp, 64 per group of four warps
    )
    return out


def num_splits(num_outputs: int, num_inputs: int, tiling: Tiling, num_programs: int) -> int:
    """The largest number of parts, a power of two, with which all programs have a few blocks each and run at once, if
    the GPU runs `num_programs` at once."""
    num_bands = triton.cdiv(num_outputs, tiling.rows)
    num_blocks = triton.cdiv(num_inputs, tiling.columns)
    limit = min(_MAX_SPLITS, num_blocks // _MIN_BLOCKS, num_programs // num_bands)
    return 1 << max(0, limit.bit_length() - 1) if limit > 0 else 1


def _padded(num_tokens: int) -> int:
    return max(_MIN_TOKENS, int(triton.next_power_of_2(num_tokens)))
