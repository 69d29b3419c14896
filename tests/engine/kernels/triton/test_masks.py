"""Masks of logits on a GPU against the reference."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.reference.masks import apply_masks as apply_slowly
from tests.engine.kernels.masks import random_case

pytest.importorskip("triton")

from engine.kernels.triton.masks import apply_masks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 31, 64, 65, 1000])
def test_only_allowed_tokens_of_masked_rows_keep_their_logits(vocab_size: int, dtype: torch.dtype) -> None:
    for seed in range(3):
        logits, rows, words = random_case(seed, vocab_size, dtype)
        expected = logits.clone()
        apply_slowly(expected, rows, words)
        found = logits.to(DEVICE)
        apply_masks(found, rows.to(DEVICE), words.to(DEVICE), block=64)
        assert torch.equal(found.cpu(), expected)


def test_rows_of_a_larger_tensor_are_masked_in_place() -> None:
    """The logits that a CUDA graph returns are a view, whose rows are further apart than they are long."""
    logits, rows, words = random_case(1, 100, torch.float32)
    wide = torch.zeros(len(logits), 128)
    wide[:, :100] = logits
    apply_slowly(logits, rows, words)
    device = wide.to(DEVICE)
    apply_masks(device[:, :100], rows.to(DEVICE), words.to(DEVICE))
    assert torch.equal(device[:, :100].cpu(), logits)
    assert not device[:, 100:].any()


@pytest.mark.parametrize(
    "words", [torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 4, dtype=torch.int64)]
)
def test_masks_that_are_too_short_or_of_another_type_are_refused(words: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="words must be int32"):
        apply_masks(torch.zeros(2, 100), torch.tensor([1]), words)
