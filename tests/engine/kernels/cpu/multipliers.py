"""The instructions with which a CPU may multiply bfloat16, for tests that run once with each."""

from __future__ import annotations

from typing import Any

import pytest

NAMES = ("amx", "avx512_bf16")


def multiplier_or_skip(name: str) -> Any:
    """The multiplier that kernels take for these instructions; skips the test where this CPU does not have them."""
    multiply_bf16 = pytest.importorskip("engine.kernels.cpu.multiply_bf16")
    best = multiply_bf16.multiplier()
    if best is None or (name == "amx" and best is multiply_bf16.AVX512):
        pytest.skip(f"this CPU has no {name}")
    return best if name == "amx" else multiply_bf16.AVX512
