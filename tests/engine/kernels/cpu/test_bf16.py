"""Products of bfloat16 against torch and the reference, on random shapes. `test_attention` tests attention by them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.kernels.cpu.attention import numpy_view
from engine.kernels.reference import layer as reference
from tests.engine.kernels.cpu.multipliers import NAMES, multiplier_or_skip

pytest.importorskip("numba")

from engine.kernels.cpu import linear_bf16, multiply_bf16
from engine.kernels.cpu.linear import ADD, GATED, STORE

NO_BIAS = np.empty(0, dtype=np.float32)


@pytest.fixture(params=NAMES)
def multiplier(request: pytest.FixtureRequest) -> Any:
    return multiplier_or_skip(request.param)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def random_shape(seed: int) -> tuple[int, int, int]:
    """Rows, inputs and outputs: around the sizes of tiles and panels, and beyond a block of rows."""
    rng = np.random.default_rng(seed)
    rows = int(rng.choice([1, 2, 15, 16, 17, 31, 32, 33, 48, 130]))
    return rows, int(rng.choice([32, 64, 96, 800])), int(rng.choice([1, 16, 31, 32, 33, 100, 257]))


def padded(x: torch.Tensor) -> Any:
    """x in memory for whole blocks of rows, with NaN in the rows beyond it."""
    memory = torch.full(
        (-(-len(x) // multiply_bf16.ROWS) * multiply_bf16.ROWS, x.shape[1]), torch.nan, dtype=x.dtype
    )
    memory[: len(x)] = x
    return numpy_view(memory)[: len(x)]


def room(rows: int, width: int, start: float) -> Any:
    """[rows, width] in memory for whole blocks of rows."""
    return np.full((-(-rows // multiply_bf16.ROWS) * multiply_bf16.ROWS, width), start, dtype=np.float32)[
        :rows
    ]


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_linear(seed: int, num_threads: int, multiplier: Any) -> None:
    rows, inputs, outputs = random_shape(seed)
    x, weight = noise(seed, rows, inputs), noise(seed + 1, outputs, inputs)
    panels = linear_bf16.pack(numpy_view(weight))
    width = panels.shape[0] * multiply_bf16.PANEL
    bias = np.zeros(width, dtype=np.float32)
    bias[:outputs] = np.arange(outputs)
    expected = x.float() @ weight.float().T

    def run(mode: int, start: float, bias: Any = NO_BIAS) -> torch.Tensor:
        out = room(rows, width, start)
        code = linear_bf16.code_of_parts(multiplier)
        linear_bf16.linear(code, padded(x), panels, multiplier, bias, mode, num_threads, out)
        return torch.from_numpy(out)[:, :outputs]

    def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5 * inputs)

    assert_close(run(STORE, np.nan), expected)
    assert_close(run(STORE, np.nan, bias), expected + torch.arange(outputs))
    assert_close(run(ADD, 2.0), expected + 2.0)


@pytest.mark.parametrize("seed", range(12))
def test_gated_linear(seed: int, multiplier: Any) -> None:
    rows, inputs, outputs = random_shape(seed)
    x, gate, partner = (
        noise(seed, rows, inputs),
        noise(seed + 1, outputs, inputs),
        noise(seed + 2, outputs, inputs),
    )
    panels = linear_bf16.interleave(numpy_view(gate), numpy_view(partner))
    out = torch.full((rows, panels.shape[0] * multiply_bf16.PANEL // 2), torch.nan, dtype=torch.bfloat16)
    code = linear_bf16.code_of_parts(multiplier)
    linear_bf16.linear(code, padded(x), panels, multiplier, NO_BIAS, GATED, 2, numpy_view(out))
    expected = reference.silu_gated(x.float() @ gate.float().T, x.float() @ partner.float().T)
    torch.testing.assert_close(out[:, :outputs].float(), expected, rtol=1e-2, atol=1e-4 * inputs)


def test_silu_far_from_zero(multiplier: Any) -> None:
    x = torch.zeros(5, 32).bfloat16()
    x[:, 0] = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0])
    weight = torch.zeros(1, 32).bfloat16()
    weight[0, 0] = 1.0
    out = torch.full((5, 16), torch.nan, dtype=torch.bfloat16)
    panels = linear_bf16.interleave(numpy_view(weight), numpy_view(weight))
    code = linear_bf16.code_of_parts(multiplier)
    linear_bf16.linear(code, padded(x), panels, multiplier, NO_BIAS, GATED, 1, numpy_view(out))
    torch.testing.assert_close(out[:, :1], reference.silu_gated(x[:, :1], x[:, :1]).bfloat16())


def test_products_of_torch_are_not_disturbed(multiplier: Any) -> None:
    """torch's own products use the same tiles and remember how they configured them."""
    x, weight = noise(0, 64, 64), noise(1, 64, 64)
    before = x @ weight
    linear_bf16.linear(
        linear_bf16.code_of_parts(multiplier),
        padded(x),
        linear_bf16.pack(numpy_view(weight)),
        multiplier,
        NO_BIAS,
        STORE,
        2,
        np.empty((64, 64), np.float32),
    )
    assert torch.equal(x @ weight, before)


COMPILE = """
from numba import uint16
from engine.kernels.cpu import linear_bf16, multiply_bf16, prefill_attention_bf16
linear_bf16.code_of_parts(multiply_bf16.AMX)
prefill_attention_bf16.code_of_units(multiply_bf16.AMX, uint16)
"""


def test_compiles_for_amx_on_any_cpu(tmp_path: Path) -> None:
    """LLVM ends the process if the kernels use instructions that the CPU they are compiled for does not have."""
    host = {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COMPILE], env=os.environ | host, check=True)
