"""Copies of slots by the reference."""

from __future__ import annotations

import torch

from engine.kernels.reference.slots import TorchSlotCopier


def test_slots_gathered_and_scattered_elsewhere_hold_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(64, 2, 8, generator=generator), torch.randn(64, 2, 4, generator=generator)
    copier = TorchSlotCopier([(k, v)])
    before = [cache.clone() for cache in (k, v)]
    picked = torch.randperm(64, generator=generator)
    source, target = picked[:10], picked[10:20]
    saved = copier.gather(source)
    k[source], v[source] = 0, 0
    copier.scatter(target, saved)
    for cache, old in zip((k, v), before, strict=True):
        assert torch.equal(cache[target], old[source])
        assert torch.equal(cache[picked[20:]], old[picked[20:]])
        assert not cache[source].any()
