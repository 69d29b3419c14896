"""Copies of slots by rows equal those of the reference."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.cpu.slots import CpuSlotCopier
from engine.kernels.reference.slots import TorchSlotCopier

NUM_SLOTS = 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_slots_are_copied_as_by_the_reference(dtype: torch.dtype) -> None:
    """Layers differ in their sizes, and slots of -1 are skipped."""
    generator = torch.Generator().manual_seed(0)
    caches = [
        tuple(torch.randn(NUM_SLOTS, heads, size, generator=generator).to(dtype) for size in sizes)
        for heads, sizes in ((2, (8, 8)), (1, (5, 3)))
    ]
    expected_caches = [(k.clone(), v.clone()) for k, v in caches]
    copier, reference = CpuSlotCopier(caches), TorchSlotCopier(expected_caches)
    assert copier.bytes_per_slot == reference.bytes_per_slot
    source, target = torch.randperm(NUM_SLOTS, generator=generator)[:22].split(11)
    source[3] = target[5] = -1
    rows = torch.full((11, copier.bytes_per_slot), 0xEE, dtype=torch.uint8)
    expected_rows = reference.gather(source, rows.clone())
    assert torch.equal(copier.gather(source, rows), expected_rows)
    assert (rows[3] == 0xEE).all()
    copier.scatter(target, rows)
    reference.scatter(target, expected_rows)
    for pair, expected_pair in zip(caches, expected_caches, strict=True):
        for cache, expected in zip(pair, expected_pair, strict=True):
            assert torch.equal(cache.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(copier.gather(source[4:]), reference.gather(source[4:]))


def test_wrong_rows_are_rejected() -> None:
    copier = CpuSlotCopier([(torch.zeros(4, 1, 2), torch.zeros(4, 1, 2))])
    with pytest.raises(ValueError, match="contiguous uint8 buffer"):
        copier.scatter(torch.tensor([1]), torch.zeros(1, 3, dtype=torch.uint8))
