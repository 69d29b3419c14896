"""Products of bfloat16 tiles against their slow twins, on random shapes. (Attention by them: `test_cpu`.)"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.kernels import reference
from engine.kernels.cpu import plain

pytest.importorskip("numba")

from engine.kernels import cpu_amx
from engine.kernels import cpu_amx_linear as amx

pytestmark = pytest.mark.skipif(not cpu_amx.has_tiles(), reason="this CPU has no AMX")


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def random_shape(seed: int) -> tuple[int, int, int]:
    """Rows, inputs and outputs: around the sizes of tiles and panels, and beyond a block of rows."""
    rng = np.random.default_rng(seed)
    rows = int(rng.choice([1, 2, 15, 16, 17, 31, 32, 33, 48, 130]))
    return rows, int(rng.choice([32, 64, 96, 800])), int(rng.choice([1, 16, 31, 32, 33, 100, 257]))


def padded(x: torch.Tensor) -> Any:
    """In memory of whole blocks of rows, those that are too many poisoned."""
    memory = torch.full((-(-len(x) // cpu_amx.ROWS) * cpu_amx.ROWS, x.shape[1]), torch.nan, dtype=x.dtype)
    memory[: len(x)] = x
    return plain(memory)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_linear(seed: int, num_threads: int) -> None:
    rows, inputs, outputs = random_shape(seed)
    x, weight = noise(seed, rows, inputs), noise(seed + 1, outputs, inputs)
    panels = amx.pack(plain(weight))
    expected = x.float() @ weight.float().T
    width = panels.shape[0] * cpu_amx.COLUMNS

    def run(mode: int, start: float) -> torch.Tensor:
        out = np.full((len(padded(x)), width), start, dtype=np.float32)
        amx.linear(rows, padded(x), panels, cpu_amx.CONFIG, mode, num_threads, out)
        return torch.from_numpy(out)[:rows, :outputs]

    torch.testing.assert_close(run(amx.STORE, np.nan), expected, rtol=1e-4, atol=1e-5 * inputs)
    torch.testing.assert_close(run(amx.ADD, 2.0), expected + 2.0, rtol=1e-4, atol=1e-5 * inputs)


@pytest.mark.parametrize("seed", range(12))
def test_gated_linear(seed: int) -> None:
    rows, inputs, outputs = random_shape(seed)
    x, gate, partner = (
        noise(seed, rows, inputs),
        noise(seed + 1, outputs, inputs),
        noise(seed + 2, outputs, inputs),
    )
    panels = amx.interleave(plain(gate), plain(partner))
    out = torch.full((rows, panels.shape[0] * cpu_amx.COLUMNS // 2), torch.nan, dtype=torch.bfloat16)
    amx.linear(rows, padded(x), panels, cpu_amx.CONFIG, amx.GATED, 2, plain(out))
    expected = reference.silu_gated(x.float() @ gate.float().T, x.float() @ partner.float().T)
    torch.testing.assert_close(out[:, :outputs].float(), expected, rtol=1e-2, atol=1e-4 * inputs)


def test_silu_far_from_zero() -> None:
    x = torch.zeros(5, 32).bfloat16()
    x[:, 0] = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0])
    weight = torch.zeros(1, 32).bfloat16()
    weight[0, 0] = 1.0
    out = torch.full((5, 16), torch.nan, dtype=torch.bfloat16)
    panels = amx.interleave(plain(weight), plain(weight))
    amx.linear(5, padded(x), panels, cpu_amx.CONFIG, amx.GATED, 1, plain(out))
    torch.testing.assert_close(out[:, :1], reference.silu_gated(x[:, :1], x[:, :1]).bfloat16())


def test_products_of_others_go_on_undisturbed() -> None:
    """torch's own products use the same tiles, configured in a way that they remember."""
    x, weight = noise(0, 64, 64), noise(1, 64, 64)
    before = x @ weight
    amx.linear(
        64, padded(x), amx.pack(plain(weight)), cpu_amx.CONFIG, amx.STORE, 2, np.empty((64, 64), np.float32)
    )
    assert torch.equal(x @ weight, before)
