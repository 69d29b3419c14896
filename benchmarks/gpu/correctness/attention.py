"""Every Triton kernel against its reference on the given device, with random data at the sizes of real models.

The error is the worst token's: the norm of the difference divided by that of the reference's output, in float32.
Outputs are NaN before a kernel runs, and so are cache slots that nothing was stored to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.gpu.correctness.cases import AttentionCase, Heads, make_inputs
from benchmarks.gpu.correctness.layers import FP8, TOLERANCE, layer_checks, worst_error
from engine.kernels.reference import attention as reference

NUM_RANDOM = 6  # number of steps with random rows

Check = Callable[[], dict[str, float]]


def all_checks(device: torch.device, is_tiny: bool) -> dict[str, Check]:
    """All checks by name; each creates its own data."""
    attention: dict[str, Check] = {
        f"attention: {case.name}": lambda c=case: check_attention(c, device)  # type: ignore[misc]
        for case in attention_cases(is_tiny)
    }
    return attention | layer_checks(device, is_tiny)


def attention_cases(is_tiny: bool) -> list[AttentionCase]:
    """All options of attention, with rows of one token, with longer rows, and with both."""
    bfloat16, float16, float32 = torch.bfloat16, torch.float16, torch.float32
    if is_tiny:
        heads = Heads.of(4, 2, 16)
        spans = [(40, 1), (0, 1), (3, 66)]
        return [
            AttentionCase("float32", spans, heads, float32, padding=2),
            AttentionCase("bfloat16, fp8, window", spans, heads, bfloat16, FP8, window=11),
            AttentionCase("softcap, sinks", spans, Heads.of(3, 1, 24), float32, softcap=5.0, has_sinks=True),
            *(random_case(seed, 60, heads, float32) for seed in range(1 if is_tiny else NUM_RANDOM)),
        ]
    llama, small, gemma = Heads.of(32, 8, 128), Heads.of(32, 8, 64), Heads.of(8, 4, 256)
    singles = [(8000, 1), (0, 1), (1, 1), (255, 1), (256, 1), (257, 1), (4095, 1)]
    chunks = [(0, 64), (0, 65), (63, 2), (1000, 129), (3000, 512), (0, 63)]
    mixed = singles + chunks
    return [
        AttentionCase("one row", [(8000, 1)], llama),
        AttentionCase("200 rows", [(37 * row % 1500, 1) for row in range(200)], llama, padding=56),
        AttentionCase("chunks", chunks, llama),
        AttentionCase("mixed", mixed, llama, padding=3),
        AttentionCase("mixed, fp8", mixed, llama, cache_dtype=FP8, padding=3),
        AttentionCase("mixed, float16", mixed, llama, float16),
        AttentionCase("mixed, float32", mixed, llama, float32),
        AttentionCase("mixed, heads of 64", mixed, small),
        AttentionCase("mixed, heads of 64, fp8", mixed, small, cache_dtype=FP8),
        AttentionCase("mixed, heads of 256, window, softcap", mixed, gemma, window=512, softcap=50.0),
        AttentionCase("mixed, window, sinks", mixed, Heads.of(64, 8, 64), window=128, has_sinks=True),
        AttentionCase("mixed, sinks, fp8", mixed, Heads.of(64, 8, 64), cache_dtype=FP8, has_sinks=True),
        AttentionCase("mixed, heads of 80, one of each", mixed, Heads.of(16, 16, 80)),
        AttentionCase("mixed, heads of 96", mixed, Heads.of(24, 8, 96)),
        AttentionCase("mixed, heads of 192 and 128", mixed, Heads.of(16, 16, 192, 128)),
        AttentionCase("mixed, one head of K and V", mixed, Heads.of(8, 1, 256)),
        *(random_case(seed, 3000, llama, bfloat16) for seed in range(1 if is_tiny else NUM_RANDOM)),
    ]


def random_case(seed: int, longest: int, heads: Heads, dtype: torch.dtype) -> AttentionCase:
    """Rows of random lengths, half of them of one token."""
    rng = np.random.default_rng(seed)
    spans = [
        (
            int(rng.integers(0, longest)),
            1 if rng.random() < 0.5 else int(rng.integers(2, max(3, longest // 8))),
        )
        for _ in range(int(rng.integers(2, 24)))
    ]
    return AttentionCase(f"random {seed}", spans, heads, dtype, padding=int(rng.integers(0, 4)))


def check_attention(case: AttentionCase, device: torch.device) -> dict[str, float]:
    """Compares the outputs of both attention kernels, and the caches after the stores."""
    from engine.kernels.triton.attention import attend_stored
    from engine.kernels.triton.slots import store_kv

    inputs = make_inputs(case, device)
    ours, theirs = inputs.fresh(), inputs.fresh()
    expected = reference.attention(
        theirs.q, theirs.k, theirs.v, theirs.k_cache, theirs.v_cache, theirs.layout, theirs.options
    )
    store_kv(ours.k, ours.v, ours.k_cache, ours.v_cache, ours.layout.slot_mapping)
    out = torch.full_like(expected, torch.nan)
    attend_stored(ours.q, ours.k_cache, ours.v_cache, ours.layout, ours.options, out)
    num_tokens = len(out) - case.padding
    error = worst_error(out[:num_tokens], expected[:num_tokens])
    if not out[num_tokens:].isfinite().all():
        error = float("nan")
    if not (same_bytes(ours.k_cache, theirs.k_cache) and same_bytes(ours.v_cache, theirs.v_cache)):
        error = float("inf")
    return {"error": error, "tolerance": TOLERANCE[case.dtype]}


def same_bytes(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Compares bytes, so that NaN equals itself."""
    return torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
