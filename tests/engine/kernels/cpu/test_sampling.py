"""The likeliest token, as torch finds it."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.cpu.sampling import likeliest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_likeliest_token_is_the_first_of_several(dtype: torch.dtype) -> None:
    logits = torch.randint(-9, 9, (8, 70), generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[1] = -torch.inf
    logits[2, :69] = -torch.inf
    assert torch.equal(likeliest(logits), logits.float().argmax(dim=-1))
    assert likeliest(logits)[:3].tolist() == [int(torch.nonzero(logits[0] == 8)[0]), 0, 69]
