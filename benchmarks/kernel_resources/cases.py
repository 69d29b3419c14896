"""Launches to compile ahead of time: the engine's own launchers, called with a real model's shapes.

Tensors are on the CPU, uninitialized and never read, since launches are intercepted. See `resources`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout
from engine.kernels.triton import attention as triton_attention
from engine.kernels.triton import layer as triton_layer
from engine.kernels.triton import linear as triton_linear
from engine.kernels.triton import masks as triton_masks
from engine.kernels.triton import quantize as triton_quantize
from engine.kernels.triton import sampling as triton_sampling
from engine.kernels.triton import slots as triton_slots
from engine.kernels.triton.gpu import Processors

BF16, FP8, FP32 = torch.bfloat16, torch.float8_e4m3fn, torch.float32
_NUM_SLOTS = 16
_MAX_MODEL_LEN = 8192
_PROGRAMS, _TILE_PROGRAMS = 49, 8  # of an H200, for 32 heads of queries and 8 of keys


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    launch: Callable[[], object]
    least_capability: int = 80


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Published sizes of a model (its config.json)."""

    width: int
    inner: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    has_head_norms: bool = False


LLAMA_3_8B = ModelShape(4096, 14336, 32, 8, 128)
LLAMA_3_3B = ModelShape(3072, 8192, 24, 8, 128)  # an odd number of query heads per key/value head
LLAMA_3_1B = ModelShape(2048, 8192, 32, 8, 64)
QWEN3_4B = ModelShape(2560, 9728, 32, 8, 128, has_head_norms=True)
WIDE_HEADS = ModelShape(2560, 10240, 8, 4, 256)  # Gemma's
SHAPES = {"8b": LLAMA_3_8B, "4b": QWEN3_4B, "3b": LLAMA_3_3B, "1b": LLAMA_3_1B, "d256": WIDE_HEADS}


def product(num_tokens: int, width: int, parts: int) -> torch.Tensor:
    """A result of `linear_few` with the given number of parts."""
    return torch.empty(num_tokens, width, dtype=BF16) if parts == 1 else torch.empty(parts, num_tokens, width)


def norm(shape: ModelShape, num_tokens: int, parts: int, *, is_last: bool = False) -> None:
    x = product(num_tokens, shape.width, parts) if parts else None
    residual, out = (torch.empty(num_tokens, shape.width, dtype=BF16) for _ in range(2))
    picked = torch.empty(num_tokens, dtype=torch.int64) if is_last else None
    triton_layer.add_rms_norm(x, residual, residual[0], 1e-5, out, picked=picked)


def gated(shape: ModelShape, num_tokens: int, parts: int) -> None:
    out = torch.empty(num_tokens, shape.inner, dtype=BF16)
    triton_layer.silu_gated(product(num_tokens, 2 * shape.inner, parts), out)


def rotate(shape: ModelShape, num_tokens: int, parts: int, cache_dtype: torch.dtype) -> None:
    size = shape.head_size
    tokens = torch.empty(num_tokens, dtype=torch.int64)
    angles = torch.empty(8, size // 2, dtype=BF16)
    head_norm = torch.empty(size, dtype=BF16) if shape.has_head_norms else None
    cache = torch.empty(_NUM_SLOTS, shape.num_kv_heads, size, dtype=cache_dtype)
    triton_layer.rotate_and_store(
        product(num_tokens, (shape.num_heads + 2 * shape.num_kv_heads) * size, parts),
        tokens, angles, angles, head_norm, head_norm, 1e-5, tokens, cache, cache,
        torch.empty(num_tokens, shape.num_heads, size, dtype=BF16),
    )  # fmt: skip


def linear(
    num_outputs: int,
    num_inputs: int,
    num_tokens: int,
    tiling: triton_linear.Tiling,
    *,
    has_bias: bool = False,
    dtype: torch.dtype = BF16,
) -> None:
    weight = torch.empty(num_outputs, num_inputs, dtype=dtype)
    x = torch.empty(num_tokens, num_inputs, dtype=dtype)
    bias = torch.empty(num_outputs, dtype=BF16) if has_bias else None
    scales = None
    if dtype is FP8:
        scales = triton_linear.Scales(torch.empty(num_tokens, 1), torch.empty(num_outputs), BF16)
    triton_linear.linear_few(x, weight, bias, tiling, Processors(132, 228 * 1024), scales)


def quantize(width: int) -> None:
    triton_quantize.quantize_tokens(torch.empty(3, width, dtype=BF16))


def caches(shape: ModelShape, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    k, v = (torch.empty(_NUM_SLOTS, shape.num_kv_heads, shape.head_size, dtype=dtype) for _ in range(2))
    return k, v


def attend(
    shape: ModelShape,
    counts: list[int],
    cache_dtype: torch.dtype,
    *,
    dtype: torch.dtype = BF16,
    has_options: bool = False,
) -> None:
    """Rows that compute `counts` tokens late in a long sequence."""
    rows, total = len(counts), sum(counts)
    layout = StepLayout.build(
        torch.empty(rows, _MAX_MODEL_LEN, dtype=torch.int32),
        torch.empty(total, dtype=torch.int64),
        list(range(rows)), [_MAX_MODEL_LEN - 128] * rows, counts,
        num_programs=_PROGRAMS, num_tile_programs=_TILE_PROGRAMS,
    )  # fmt: skip
    q, out = (torch.empty(total, shape.num_heads, shape.head_size, dtype=dtype) for _ in range(2))
    sinks = torch.empty(shape.num_heads, dtype=dtype)
    options = AttentionOptions(0.1, 4096, 50.0, sinks) if has_options else AttentionOptions(0.1)
    triton_attention.attend_stored(q, *caches(shape, cache_dtype), layout, options, out)


def store(shape: ModelShape, cache_dtype: torch.dtype) -> None:
    k, v = (torch.empty(3, shape.num_kv_heads, shape.head_size, dtype=BF16) for _ in range(2))
    triton_slots.store_kv(k, v, *caches(shape, cache_dtype), torch.empty(3, dtype=torch.int64))


def copy_slots(shape: ModelShape, cache_dtype: torch.dtype) -> None:
    copier = triton_slots.TritonSlotCopier([caches(shape, cache_dtype)] * 2)
    slots = torch.empty(5, dtype=torch.int64)
    copier.scatter(slots, copier.gather(slots))


def draw(vocab_size: int, dtype: torch.dtype) -> None:
    triton_sampling.draw(torch.empty(2, vocab_size, dtype=dtype), torch.empty(5, 2, dtype=torch.float64))


def mask(vocab_size: int, dtype: torch.dtype) -> None:
    words = torch.empty(8, -(-vocab_size // 32), dtype=torch.int32)
    rows = torch.empty(8, dtype=torch.int64)
    triton_masks.apply_masks(torch.empty(8, vocab_size, dtype=dtype), rows, words)


def _layer_cases() -> Iterator[Case]:
    for name, parts in (("8b", 0), ("8b", 4), ("4b", 1), ("1b", 8)):
        yield Case(f"norm {name}, {parts} parts", partial(norm, SHAPES[name], 3, parts))
    yield Case("norm 8b, picked", partial(norm, SHAPES["8b"], 3, 1, is_last=True))
    for parts in (1, 2):
        yield Case(f"gated 8b, {parts} parts", partial(gated, SHAPES["8b"], 3, parts))
    for name, parts, dtype in (
        ("8b", 1, BF16), ("8b", 4, FP8), ("4b", 4, BF16), ("4b", 1, FP8), ("1b", 8, BF16), ("d256", 1, BF16),
    ):  # fmt: skip
        label = f"rotate {name}, {parts} parts, {'bf16' if dtype is BF16 else 'fp8'}"
        yield Case(label, partial(rotate, SHAPES[name], 3, parts, dtype))


def _linear_cases() -> Iterator[Case]:
    for tiling in triton_linear.TILINGS:
        # Few tokens (the product is split) and many (it is not): the smallest and the largest tiles of a program.
        for num_tokens, num_outputs in ((16, 4096), (64, 28672)):
            label = f"linear {num_outputs} x 4096, {num_tokens} tokens, tile {tiling.rows} x {tiling.columns}"
            run = partial(linear, num_outputs, 4096, num_tokens, tiling)
            yield Case(label, run)
            # Where it is used: see `engine.kernels.triton.fp8.converts_fp8`.
            yield Case(f"{label}, fp8", partial(run, dtype=FP8), least_capability=90)
    label = "linear 6144 x 2064, bias"
    yield Case(label, partial(linear, 6144, 2064, 1, triton_linear.TILINGS[0], has_bias=True))
    for width in (4096, 14336, 53248):  # of Llama 3 8B, and the widest of 405B, which is read in blocks
        yield Case(f"quantize {width}", partial(quantize, width))


# Many rows (no context is split), few rows (contexts are split), and a chunk of several tiles.
_MANY, _FEW, _CHUNK = [1] * 128, [1, 1], [100]


def _attention_cases() -> Iterator[Case]:
    for label, counts in (("many rows", _MANY), ("few rows", _FEW), ("chunk", _CHUNK)):
        for name, cache_dtype in (("8b", BF16), ("8b", FP8), ("3b", BF16), ("1b", BF16), ("d256", FP8)):
            if counts is _MANY and name != "8b":
                continue  # differs from few rows only in its last store
            kind = "bf16" if cache_dtype is BF16 else "fp8"
            yield Case(f"attend {name}, {label}, {kind}", partial(attend, SHAPES[name], counts, cache_dtype))
    for label, counts in (("few rows", _FEW), ("chunk", _CHUNK)):
        run = partial(attend, SHAPES["8b"], counts)
        yield Case(f"attend 8b, {label}, window, cap, sinks", partial(run, BF16, has_options=True))
        wide = partial(attend, SHAPES["d256"], counts, BF16, has_options=True)
        yield Case(f"attend d256, {label}, window, cap, sinks", wide)
        yield Case(f"attend 8b, {label}, fp32", partial(run, FP32, dtype=FP32))
    for name, cache_dtype in (("8b", BF16), ("d256", FP8)):
        kind = "bf16" if cache_dtype is BF16 else "fp8"
        yield Case(f"store {name}, {kind}", partial(store, SHAPES[name], cache_dtype))
        yield Case(f"copy slots {name}, {kind}", partial(copy_slots, SHAPES[name], cache_dtype))


def _sampling_cases() -> Iterator[Case]:
    for vocab_size, dtype in ((50257, BF16), (128256, FP32), (151936, BF16), (262144, FP32)):
        label = f"draw from {vocab_size}, {'bf16' if dtype is BF16 else 'fp32'}"
        yield Case(label, partial(draw, vocab_size, dtype))
        yield Case(label.replace("draw from", "mask"), partial(mask, vocab_size, dtype))


CASES = (*_layer_cases(), *_linear_cases(), *_attention_cases(), *_sampling_cases())
