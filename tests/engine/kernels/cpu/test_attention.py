"""The CPU backend of attention against the reference, on random steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.kernels.cpu import attention as cpu
from engine.kernels.reference import attention as reference
from tests.engine.kernels.cpu.multipliers import NAMES, multiplier_or_skip
from tests.engine.kernels.steps import Case, random_case, random_spans

# bfloat16 has 8 bits: results of size about 1 are 1/256 apart, and the two sum in different orders before rounding.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@pytest.fixture(params=[*NAMES, "float32", "without numba"])
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The backend with each multiplier of bfloat16 that a CPU may have, with products in float32, and without numba."""
    if request.param != "without numba":
        multiply_bf16 = pytest.importorskip("engine.kernels.cpu.multiply_bf16")
        chosen = multiplier_or_skip(request.param) if request.param in NAMES else None
        monkeypatch.setattr(multiply_bf16, "multiplier", lambda: chosen)
    monkeypatch.setattr(cpu, "HAS_NUMBA", request.param != "without numba")
    return cpu.attention


def assert_like_reference(case: Case, attention: Any) -> None:
    out, k_cache, v_cache = case.run(attention)
    expected, k_expected, v_expected = case.run(reference.attention)
    assert out.dtype is expected.dtype
    assert torch.equal(k_cache, k_expected)
    assert torch.equal(v_cache, v_expected)
    tolerance = TOLERANCE[case.q.dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(12))
def test_random_steps(seed: int, dtype: torch.dtype, attention: Any) -> None:
    rng = np.random.default_rng(seed)
    num_kv_heads = int(rng.choice([1, 2, 3, 4]))
    case = random_case(
        seed,
        random_spans(rng),
        heads=(num_kv_heads * int(rng.choice([1, 2, 3])), num_kv_heads),
        size=int(rng.choice([8, 24, 32, 64])),
        dtype=dtype,
        window=None if rng.random() < 0.4 else int(rng.choice([1, 2, 16, 17, 33, 200])),
        softcap=None if rng.random() < 0.7 else 4.0,
        with_sinks=rng.random() < 0.3,
        block_size=int(rng.choice([16, 32, 64])),
    )
    assert_like_reference(case, attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [(7, 1), (16, 2), (13, 1)])
def test_more_queries_share_a_key_than_fit_the_registers(
    heads: tuple[int, int], dtype: torch.dtype, attention: Any
) -> None:
    spans = [(70, 1), (3, 40), (0, 1), (129, 1)]
    assert_like_reference(random_case(6, spans, heads=heads, size=64, dtype=dtype), attention)


@pytest.mark.parametrize("window", [None, 40])
def test_many_single_rows_share_threads_evenly_or_not(window: int | None, attention: Any) -> None:
    """Enough rows that a unit of work is a whole row, with very unequal lengths."""
    rng = np.random.default_rng(5)
    assert_like_reference(
        random_case(5, [(int(n), 1) for n in rng.integers(0, 120, size=40)], window=window), attention
    )


@pytest.mark.parametrize("spans", [[(0, 1)], [(0, 2)], [(63, 1)], [(64, 1)], [(16, 16)], [(0, 16), (15, 1)]])
def test_boundaries(spans: list[tuple[int, int]], attention: Any) -> None:
    assert_like_reference(random_case(0, spans), attention)
    assert_like_reference(random_case(0, spans, window=16), attention)


def test_values_may_have_another_size_than_keys(attention: Any) -> None:
    assert_like_reference(random_case(4, [(20, 1), (3, 9), (0, 1)], size=24, size_v=16), attention)


def test_float16(attention: Any) -> None:
    assert_like_reference(random_case(4, [(20, 1), (3, 9), (0, 1)], dtype=torch.float16), attention)


def test_scores_far_apart_neither_overflow_nor_vanish(attention: Any) -> None:
    case = random_case(6, [(50, 1), (0, 1)])
    case.q.mul_(300.0)
    assert_like_reference(case, attention)


def test_memory_that_was_never_written_is_never_read(attention: Any) -> None:
    case = random_case(7, [(30, 1), (5, 1), (0, 12), (9, 4)])
    used = torch.zeros(len(case.k_cache), dtype=torch.bool)
    for row, start, count, _ in case.layout.host.T.tolist():
        used[case.layout.slot_table[row, : start + count].long()] = True
    case.k_cache[~used] = torch.nan
    case.v_cache[~used] = torch.nan
    out, _, _ = case.run(attention)
    assert torch.isfinite(out).all()
