"""The units that a CPU may have for products of bfloat16, for tests of each that is here."""

from __future__ import annotations

from typing import Any

import pytest

NAMES = ("tiles", "pairs")


def multiplier_or_skip(name: str) -> Any:
    """What the kernels take for it; skips the test where this CPU has none."""
    cpu_narrow = pytest.importorskip("engine.kernels.cpu.multiply_bf16")
    best = cpu_narrow.multiplier()
    if best is None or (name == "tiles" and best is cpu_narrow.PAIRS):
        pytest.skip(f"this CPU multiplies no {name} of bfloat16")
    return best if name == "tiles" else cpu_narrow.PAIRS
