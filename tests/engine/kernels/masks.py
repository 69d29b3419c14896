"""Random logits and masks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def mask_of(token_ids: list[int], num_words: int) -> npt.NDArray[np.int32]:
    """[num_words] The mask that allows these tokens."""
    words = np.zeros(num_words, dtype=np.uint32)
    for token_id in token_ids:
        words[token_id // 32] |= np.uint32(1 << (token_id % 32))
    return words.view(np.int32)


def random_case(
    seed: int, vocab_size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [n, V], some of their rows, and their masks, with a word more than needed: full, empty and mixed words."""
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 6))
    logits = torch.from_numpy(rng.normal(size=(num_rows, vocab_size)).astype(np.float32)).to(dtype)
    rows = rng.permutation(num_rows)[: int(rng.integers(1, num_rows + 1))]
    shape = (len(rows), -(-vocab_size // 32) + 1)
    words = rng.integers(0, 2**32, size=shape, dtype=np.uint64).astype(np.uint32)
    words = np.where(rng.random(shape) < 0.3, np.uint32(0xFFFFFFFF), words)
    words = np.where(rng.random(shape) < 0.3, np.uint32(0), words)
    return logits, torch.from_numpy(rows), torch.from_numpy(words.view(np.int32))
