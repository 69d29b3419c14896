"""Compiled linear layers, and what lies between them, against the reference, on random shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.kernels.cpu.attention import numpy_view
from engine.kernels.reference import layer as reference

pytest.importorskip("numba")

from numba import from_dtype

from engine.kernels.cpu import layer, linear
from engine.kernels.cpu.llvm.register_tiles import PANEL

NO_BIAS = np.empty(0, dtype=np.float32)
DTYPES = [torch.float32, torch.bfloat16]


def noise(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def code_for(panels: Any) -> int:
    return linear.code_of_parts(from_dtype(panels.dtype))


def random_shape(seed: int) -> tuple[int, int, int]:
    """Rows, inputs and outputs: around the sizes of tiles and panels, and beyond a block of rows."""
    rng = np.random.default_rng(seed)
    rows = int(rng.choice([1, 2, 5, 6, 7, 12, 13, 40, 300]))
    return rows, int(rng.choice([1, 3, 16, 63, 800])), int(rng.choice([1, 16, 31, 32, 100, 257]))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(8))
def test_linear(seed: int, dtype: torch.dtype, num_threads: int) -> None:
    rows, inputs, outputs = random_shape(seed)
    x, weight = noise(seed, rows, inputs), noise(seed + 1, outputs, inputs, dtype=dtype)
    panels = linear.pack(numpy_view(weight))
    expected = x @ weight.float().T
    width = linear.padded(outputs)
    bias = np.zeros(width, dtype=np.float32)
    bias[:outputs] = noise(seed + 2, outputs).numpy()

    def run(bias: Any, mode: int, out: Any) -> torch.Tensor:
        linear.linear(code_for(panels), x.numpy(), panels, bias, mode, num_threads, out)
        return torch.from_numpy(out)[:, :outputs]

    tolerance = {"rtol": 1e-4, "atol": 1e-5 * inputs}
    without_bias = run(NO_BIAS, linear.STORE, np.full((rows, width), np.nan, dtype=np.float32))
    torch.testing.assert_close(without_bias, expected, **tolerance)
    biased = run(bias, linear.STORE, np.full((rows, width), np.nan, dtype=np.float32))
    torch.testing.assert_close(biased, expected + torch.from_numpy(bias)[:outputs], **tolerance)
    added = run(NO_BIAS, linear.ADD, np.full((rows, width), 2.0, dtype=np.float32))
    torch.testing.assert_close(added, expected + 2.0, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(8))
def test_gated_linear(seed: int, dtype: torch.dtype) -> None:
    rows, inputs, outputs = random_shape(seed)
    x = noise(seed, rows, inputs)
    gate, partner = (noise(seed + i, outputs, inputs, dtype=dtype) for i in (1, 2))
    out = np.full((rows, linear.padded(outputs)), np.nan, dtype=np.float32)
    panels = linear.interleave(numpy_view(gate), numpy_view(partner))
    linear.linear(code_for(panels), x.numpy(), panels, NO_BIAS, linear.GATED, 2, out)
    expected = reference.silu_gated(x @ gate.float().T, x @ partner.float().T)
    torch.testing.assert_close(torch.from_numpy(out)[:, :outputs], expected, rtol=1e-3, atol=1e-4 * inputs)


def test_silu_far_from_zero() -> None:
    x = torch.tensor([[-200.0], [-30.0], [0.0], [30.0], [200.0]])
    weight = np.ones((1, 1), dtype=np.float32)
    out = np.empty((5, PANEL), dtype=np.float32)
    panels = linear.interleave(weight, weight)
    linear.linear(code_for(panels), x.numpy(), panels, NO_BIAS, linear.GATED, 1, out)
    torch.testing.assert_close(torch.from_numpy(out)[:, :1], reference.silu_gated(x, x))


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 24, 100])
def test_rms_norm(size: int, out_dtype: torch.dtype) -> None:
    x, weight = noise(0, 7, size + 3), noise(1, size)
    out = torch.empty(7, size, dtype=out_dtype)
    layer.rms_norm(x.numpy(), weight.numpy(), 1e-5, 1, numpy_view(out))
    expected = reference.rms_norm(x[:, :size], weight, 1e-5).to(out_dtype)
    tolerance = 1e-5 if out_dtype is torch.float32 else 1e-2  # a rounding may fall to either side
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed(dtype: torch.dtype) -> None:
    table, out = noise(0, 11, 20, dtype=dtype), np.empty((4, 32), dtype=np.float32)
    token_ids = torch.tensor([10, 0, 3, 3])
    layer.embed(numpy_view(table), token_ids.numpy(), out)
    assert torch.equal(torch.from_numpy(out)[:, :20], table[token_ids].float())


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate_and_store(dtype: torch.dtype, has_norms: bool) -> None:
    num_heads, num_kv_heads, size, total = 6, 2, 24, 9
    qkv = noise(0, total, (num_heads + 2 * num_kv_heads) * size)
    angles = noise(1, 50, size // 2)
    positions, slots = torch.randint(50, (total,)), torch.randperm(30)[:total]
    caches = [noise(2 + i, 30, num_kv_heads, size, dtype=dtype) for i in range(2)]
    expected_caches = [cache.clone() for cache in caches]
    norms = [noise(4, size), noise(5, size)] if has_norms else [None, None]
    q = torch.empty(total, num_heads, size)
    layer.rotate_and_store(
        qkv.numpy(), positions.numpy(), angles.cos().numpy(), angles.sin().numpy(),
        *(NO_BIAS if norm is None else norm.numpy() for norm in norms), 1e-5,
        slots.numpy(), *(numpy_view(cache) for cache in caches), 1, q.numpy(),
    )  # fmt: skip
    expected = reference.rotate_and_store(
        qkv, positions, angles.cos(), angles.sin(), *norms, 1e-5, slots, *expected_caches
    )
    torch.testing.assert_close(q, expected, rtol=1e-5, atol=1e-5)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    for cache, expected_cache in zip(caches, expected_caches, strict=True):
        torch.testing.assert_close(cache, expected_cache, rtol=tolerance, atol=tolerance)


def test_q_alone_and_k_and_v_alone_are_rotated_and_stored_as_together() -> None:
    num_heads, num_kv_heads, size, total = 6, 2, 24, 9
    qkv = noise(0, total, (num_heads + 2 * num_kv_heads) * size).numpy()
    angles = noise(1, 50, size // 2)
    rotations = (torch.randint(50, (total,)).numpy(), angles.cos().numpy(), angles.sin().numpy())
    norms = (noise(4, size).numpy(), noise(5, size).numpy())
    slots = torch.randperm(30)[:total].numpy()
    expected = [np.zeros((30, num_kv_heads, size), np.float32) for _ in range(2)]
    expected_q = np.empty((total, num_heads, size), np.float32)
    layer.rotate_and_store(qkv, *rotations, *norms, 1e-5, slots, *expected, 1, expected_q)
    of_q, of_kv = (np.ascontiguousarray(part) for part in np.split(qkv, [num_heads * size], axis=1))
    caches = [np.zeros_like(cache) for cache in expected]
    no_q, q = np.empty((total, 0, size), np.float32), np.empty_like(expected_q)
    layer.rotate_and_store(of_q, *rotations, *norms, 1e-5, slots[:0], *caches, 1, q)
    assert not any(cache.any() for cache in caches)
    layer.rotate_and_store(of_kv, *rotations, *norms, 1e-5, slots, *caches, 1, no_q)
    np.testing.assert_array_equal(q, expected_q)
    np.testing.assert_array_equal(caches, expected)
