"""Masks of logits on a CPU against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.kernels.cpu.masks import apply_masks
from engine.kernels.reference.masks import apply_masks as apply_slowly
from tests.engine.kernels.masks import mask_of, random_case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 64, 1000, 1537])
def test_only_allowed_tokens_of_masked_rows_keep_their_logits(vocab_size: int, dtype: torch.dtype) -> None:
    for seed in range(4):
        logits, rows, words = random_case(seed, vocab_size, dtype)
        expected = logits.clone()
        apply_slowly(expected, rows, words)
        apply_masks(logits, rows, words)
        assert torch.equal(logits, expected)


def test_the_reference_keeps_exactly_the_tokens_whose_bits_are_set() -> None:
    logits = torch.arange(3 * 40, dtype=torch.float32).view(3, 40)
    before = logits.clone()
    allowed = [0, 31, 32, 39]
    apply_slowly(logits, torch.tensor([1]), torch.from_numpy(mask_of(allowed, 2)[None]))
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert np.flatnonzero(torch.isfinite(logits[1]).numpy()).tolist() == allowed
    assert torch.equal(logits[1, allowed], before[1, allowed])
