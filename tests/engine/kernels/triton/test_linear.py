"""Products of few tokens in Triton against torch's, on random shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from engine.kernels.triton.gpu import Processors
from engine.kernels.triton.linear import MAX_TOKENS, TILINGS, Tiling, linear_few, num_splits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCE = {FP32: 1e-5, FP16: 2e-3, BF16: 1.6e-2}
PROCESSORS = Processors(8, 228 * 1024)  # a small H100


def noise(seed: int, *shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tiling: Tiling) -> int:
    """Compares with torch and returns the number of parts."""
    expected = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    ).float()
    out = linear_few(x, weight, bias, tiling, PROCESSORS)
    tolerance = TOLERANCE[x.dtype]
    scale = float(weight.shape[1]) ** 0.5
    if out.dim() == 2:
        assert out.dtype is x.dtype
        torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance * scale)
        return 1
    assert out.dtype is FP32
    # Parts are not rounded, so only the order of sums differs.
    torch.testing.assert_close(out.sum(0), expected, rtol=1e-4, atol=1e-5 * scale)
    return len(out)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("seed", range(8))
def test_linear_few(seed: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    tokens = int(rng.choice([1, 2, 15, 16, 17, 33, MAX_TOKENS]))
    inputs, outputs = int(rng.choice([1, 127, 128, 129, 640, 1000])), int(rng.choice([1, 63, 64, 65, 200]))
    x, weight = noise(seed, tokens, inputs, dtype=dtype), noise(seed + 1, outputs, inputs, dtype=dtype)
    bias = noise(seed + 2, outputs, dtype=dtype) if rng.random() < 0.5 else None
    assert_product(x, weight, bias, TILINGS[seed % len(TILINGS)])


@pytest.mark.parametrize("tiling", TILINGS)
def test_parts_add_up(tiling: Tiling) -> None:
    """Blocks that cannot be divided evenly among the parts, and a bias, which only one part adds."""
    inputs = 11 * tiling.columns + 8
    x, weight, bias = (
        noise(0, 3, inputs, dtype=FP16),
        noise(1, 70, inputs, dtype=FP16),
        noise(2, 70, dtype=FP16),
    )
    assert assert_product(x, weight, bias, tiling) > 1


def test_splits_fill_a_gpu_and_no_more() -> None:
    tiling = Tiling(rows=64, columns=128, num_stages=3)
    assert (
        num_splits(4096, 4096, tiling, 3 * 132) == 4
    )  # 256 programs of the 396 that fit; 8 parts would be 512
    assert num_splits(28672, 4096, tiling, 3 * 132) == 1  # 448 programs are enough
    assert num_splits(64, 1 << 20, tiling, 3 * 132) == 8
    assert num_splits(64, 1024, tiling, 3 * 132) == 2  # four blocks each
    assert num_splits(64, 100, tiling, 3 * 132) == 1


def test_more_tokens_leave_room_for_fewer_programs() -> None:
    """The numbers of programs that fit on a multiprocessor, for 1 and for 64 tokens."""
    fitting = [
        tuple(PROCESSORS.shared_bytes // tiling.shared_bytes(count, itemsize=2) for count in (1, 64))
        for tiling in TILINGS
    ]
    assert fitting == [(3, 2), (2, 1), (1, 1)]


def test_bad_input_is_rejected() -> None:
    x, weight = noise(0, 3, 8), noise(1, 4, 8)
    with pytest.raises(ValueError, match="this product takes 1 to 64"):
        linear_few(noise(0, 65, 8), weight, None, TILINGS[0], PROCESSORS)
    with pytest.raises(ValueError, match="do not match a weight"):
        linear_few(x[:, :7].contiguous(), weight, None, TILINGS[0], PROCESSORS)
    with pytest.raises(ValueError, match="do not match a weight"):
        linear_few(x, weight.bfloat16(), None, TILINGS[0], PROCESSORS)
    with pytest.raises(ValueError, match="contiguous"):
        linear_few(x, noise(1, 8, 4).T, None, TILINGS[0], PROCESSORS)
