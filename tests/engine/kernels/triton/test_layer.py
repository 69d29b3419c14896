"""What lies between a layer's products, in Triton, against the reference and transformers' own modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from engine.kernels.reference import layer as reference

pytest.importorskip("triton")

from engine.kernels.triton import layer as triton_layer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
# For a result that is rounded once; a sum in another order may be rounded to the other side.
TOLERANCE = {FP32: 2e-6, FP16: 2e-3, BF16: 1.6e-2, FP8: 0.13}
EPSILON = 1e-5


def noise(seed: int, *shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, torch.nan, device=DEVICE).to(dtype)


def split(x: torch.Tensor, parts: int, seed: int) -> torch.Tensor:
    """`x` as a product split into `parts` returns it."""
    if parts == 1:
        return x
    shares = noise(seed, parts - 1, *x.shape)
    return torch.cat([shares, x.float()[None] - shares.sum(0)])


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


def assert_rounded_alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal except for a few numbers that a sum in another order rounds to the other side."""
    assert actual.dtype is expected.dtype
    assert_near(actual, expected)
    assert (actual == expected).float().mean() > 0.97


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("size", [1, 40, 128, 129])
def test_add_rms_norm(size: int, dtype: torch.dtype, parts: int) -> None:
    rows = 5
    x, residual, weight = (
        noise(i, *shape, dtype=dtype) for i, shape in enumerate([(rows, size)] * 2 + [(size,)])
    )
    total = residual.clone()
    out = poisoned(rows, size, dtype=dtype)
    triton_layer.add_rms_norm(split(x, parts, 9), total, weight, EPSILON, out)
    if parts == 1:
        assert torch.equal(total, residual + x)
    assert_near(total, residual + x)
    assert_near(out, reference.rms_norm(total, weight, EPSILON))


def test_norm_of_the_first_residual_leaves_it() -> None:
    residual, weight = noise(0, 3, 64), noise(1, 64)
    before, out = residual.clone(), poisoned(3, 64, dtype=FP32)
    triton_layer.add_rms_norm(None, residual, weight, EPSILON, out)
    assert torch.equal(residual, before)
    assert_near(out, reference.rms_norm(residual, weight, EPSILON))


def test_norm_of_picked_tokens() -> None:
    x, residual, weight = noise(0, 6, 64), noise(1, 6, 64), noise(2, 64)
    before, out = residual.clone(), poisoned(4, 64, dtype=FP32)
    picked = torch.tensor([5, 0, 0, 2], device=DEVICE)
    triton_layer.add_rms_norm(x, residual, weight, EPSILON, out, picked=picked)
    assert torch.equal(residual, before)  # a token that is picked twice must not be added to twice
    assert_near(out, reference.rms_norm((residual + x)[picked], weight, EPSILON))


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_norm_rounds_as_transformers_do(dtype: torch.dtype) -> None:
    module = LlamaRMSNorm(96, EPSILON).to(DEVICE, dtype)
    module.weight.data = noise(0, 96, dtype=dtype)
    x, residual = noise(1, 40, 96, dtype=dtype), noise(2, 40, 96, dtype=dtype) * 3
    with torch.no_grad():
        expected = module(residual + x)
    out = poisoned(40, 96, dtype=dtype)
    triton_layer.add_rms_norm(x, residual, module.weight.detach(), EPSILON, out)
    assert_rounded_alike(out, expected)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("size", [1, 30, 1024, 1025])
def test_silu_gated(size: int, dtype: torch.dtype, parts: int) -> None:
    gate_up = noise(0, 3, 2 * size, dtype=dtype) * 3
    out = poisoned(3, size, dtype=dtype)
    triton_layer.silu_gated(split(gate_up, parts, 1), out)
    gate, partner = gate_up.chunk(2, dim=-1)
    if dtype is FP32:
        torch.testing.assert_close(out, reference.silu_gated(gate, partner), rtol=1e-5, atol=1e-5)
    else:
        assert_rounded_alike(out, F.silu(gate) * partner)


def test_silu_far_from_zero() -> None:
    gate = torch.tensor([[-200.0, -30.0, 0.0, 30.0, 200.0]], device=DEVICE)
    out = poisoned(1, 5, dtype=FP32)
    triton_layer.silu_gated(torch.cat([gate, gate], dim=-1), out)
    torch.testing.assert_close(out, reference.silu_gated(gate, gate))


class Rotation:
    """The inputs of one `rotate_and_store`, and its outputs and those of the reference."""

    def __init__(
        self,
        seed: int,
        *,
        heads: tuple[int, int],
        size: int,
        total: int,
        dtype: torch.dtype = FP32,
        cache_dtype: torch.dtype | None = None,
        has_norms: bool = False,
        parts: int = 1,
        scale: float = 1.0,
    ) -> None:
        num_heads, num_kv_heads = heads
        rng = np.random.default_rng(seed)
        cache_dtype = cache_dtype or dtype
        self.qkv = noise(seed, total, (num_heads + 2 * num_kv_heads) * size, dtype=dtype) * scale
        angles = noise(seed + 1, 50, size // 2)
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self.positions = torch.from_numpy(rng.integers(50, size=total)).to(DEVICE)
        slots = rng.permutation(2 * total)[:total]
        slots[rng.random(total) < 0.2] = -1
        self.slots = torch.from_numpy(slots).to(DEVICE)
        self.norms = [noise(seed + 2 + i, size, dtype=dtype) if has_norms else None for i in range(2)]
        shape = (2 * total, num_kv_heads, size)
        self.caches = [poisoned(*shape, dtype=cache_dtype) for _ in range(2)]
        self.q = poisoned(total, num_heads, size, dtype=dtype)
        triton_layer.rotate_and_store(
            split(self.qkv, parts, seed + 4), self.positions, self.cos, self.sin, *self.norms, EPSILON,
            self.slots, *self.caches, self.q,
        )  # fmt: skip
        self.expected_caches = [poisoned(*shape, dtype=FP32) for _ in range(2)]
        self.expected_q = reference.rotate_and_store(
            self.qkv, self.positions, self.cos.float(), self.sin.float(), *self.norms, EPSILON,
            self.slots, *self.expected_caches,
        )  # fmt: skip


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"heads": (6, 2), "size": 24, "total": 9},
        {"heads": (32, 8), "size": 16, "total": 1, "parts": 3},
        {"heads": (3, 3), "size": 128, "total": 2},
        {"heads": (20, 10), "size": 2, "total": 4, "parts": 2},
        {"heads": (8, 1), "size": 64, "total": 7, "dtype": BF16},
        {"heads": (4, 2), "size": 80, "total": 5, "dtype": FP16},
        {"heads": (4, 4), "size": 16, "total": 6, "cache_dtype": FP8},
        {"heads": (5, 1), "size": 32, "total": 6, "dtype": BF16, "cache_dtype": FP8},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_rotate_and_store(options: dict[str, Any], has_norms: bool) -> None:
    rotation = Rotation(7, has_norms=has_norms, **options)
    scale = 4  # values of this size are rounded in between
    tolerance = scale * TOLERANCE[rotation.q.dtype]
    torch.testing.assert_close(rotation.q.float(), rotation.expected_q, rtol=tolerance, atol=tolerance)
    tolerance = max(tolerance, TOLERANCE[rotation.caches[0].dtype])
    for cache, expected in zip(rotation.caches, rotation.expected_caches, strict=True):
        # NaN where nothing was stored, in both.
        torch.testing.assert_close(cache.float(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_a_float8_cache_saturates() -> None:
    rotation = Rotation(1, heads=(2, 1), size=16, total=8, cache_dtype=FP8, scale=300.0)
    for cache, expected in zip(rotation.caches, rotation.expected_caches, strict=True):
        written = ~expected.isnan()
        assert (expected[written].abs() > 448).any()
        clamped = expected[written].clamp(-448, 448)
        torch.testing.assert_close(cache.float()[written], clamped, rtol=0.07, atol=1e-3)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_rotation_rounds_as_transformers_do(dtype: torch.dtype) -> None:
    rotation = Rotation(3, heads=(4, 2), size=32, total=20, dtype=dtype, has_norms=True)
    heads = rotation.qkv.view(20, 8, 32)
    normed = []
    for part, weight in zip((heads[:, :4], heads[:, 4:6]), rotation.norms, strict=True):
        module = LlamaRMSNorm(32, EPSILON).to(DEVICE, dtype)
        module.weight.data = weight
        with torch.no_grad():
            normed.append(module(part)[None].transpose(1, 2))  # [1, heads, T, D]
    cos, sin = (table[rotation.positions].repeat(1, 2)[None] for table in (rotation.cos, rotation.sin))
    q, k = (x[0].transpose(0, 1) for x in apply_rotary_pos_emb(*normed, cos, sin))
    assert_rounded_alike(rotation.q, q)
    stored = rotation.slots >= 0
    assert_rounded_alike(rotation.caches[0][rotation.slots[stored]], k[stored])
    assert torch.equal(rotation.caches[1][rotation.slots[stored]], heads[stored, 6:])


def test_empty_inputs() -> None:
    triton_layer.add_rms_norm(
        None, noise(0, 3, 8), noise(0, 8), EPSILON, noise(0, 0, 8), picked=torch.empty(0, dtype=torch.int64)
    )
    triton_layer.silu_gated(noise(0, 0, 8), noise(0, 0, 4))


def test_bad_input_is_rejected() -> None:
    residual, weight = noise(0, 3, 8), noise(0, 8)
    with pytest.raises(ValueError, match="widths or numbers of tokens differ"):
        triton_layer.add_rms_norm(None, residual, weight, EPSILON, noise(0, 2, 8))
    with pytest.raises(ValueError, match=r"\(3, 7\) is not a contiguous \(3, 8\)"):
        triton_layer.add_rms_norm(noise(0, 3, 7), residual, weight, EPSILON, residual)
    with pytest.raises(ValueError, match="parts of a product must be float32"):
        triton_layer.silu_gated(noise(0, 2, 3, 8, dtype=BF16), noise(0, 3, 4, dtype=BF16))
    with pytest.raises(ValueError, match="not contiguous"):
        triton_layer.add_rms_norm(None, residual.T, noise(0, 3), EPSILON, noise(0, 8, 3))
    tokens, angles, cache = torch.zeros(1, dtype=torch.int64), noise(0, 4, 4), noise(0, 2, 1, 8)
    with pytest.raises(ValueError, match="or neither"):
        triton_layer.rotate_and_store(
            noise(0, 1, 24),
            tokens,
            angles,
            angles,
            weight,
            None,
            EPSILON,
            tokens,
            cache,
            cache,
            noise(0, 1, 1, 8),
        )
    with pytest.raises(ValueError, match="cannot be rotated"):
        triton_layer.rotate_and_store(
            noise(0, 1, 24), tokens, angles[:, :3].contiguous(), angles, None, None, EPSILON, tokens, cache, cache,
            noise(0, 1, 1, 8),
        )  # fmt: skip
