"""Random steps for attention backends: rows of unequal lengths, of one token and of several, with scattered slots."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout


@dataclass(frozen=True)
class Case:
    """The inputs of one call of an attention op."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    layout: StepLayout
    options: AttentionOptions

    def run(self, op: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The op's output, and copies of the caches after the call."""
        k_cache, v_cache = self.k_cache.clone(), self.v_cache.clone()
        # A layout with its own scratch, so that backends do not see each other's values.
        layout = self.layout
        fresh = dataclasses.replace(layout, scratch={})
        return op(self.q, self.k, self.v, k_cache, v_cache, fresh, self.options), k_cache, v_cache


def random_case(
    seed: int,
    spans: list[tuple[int, int]],
    *,
    heads: tuple[int, int] = (4, 2),
    size: int = 16,
    size_v: int | None = None,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    softcap: float | None = None,
    with_sinks: bool = False,
    block_size: int = 16,
    cache_dtype: torch.dtype | None = None,
    slots: Literal["sides", "shuffled"] = "sides",
    poisoned: bool = False,
    device: str = "cpu",
    num_programs: int = 0,
    num_tile_programs: int = 0,
) -> Case:
    """Rows that compute `count` tokens from `start`, for (start, count) in `spans`.

    Slots as the two lanes take them: a row goes up the left or down the right of blocks that it may share with another.
    Or `shuffled`: each anywhere. `poisoned`: what no token was written to is NaN.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    size_v = size if size_v is None else size_v
    longest = max(start + count for start, count in spans)
    blocks_per_row = -(-longest // (block_size // 2))
    num_rows = len(spans) + 3
    num_blocks = blocks_per_row * -(-num_rows // 2)
    table = np.zeros((num_rows, longest + 5), dtype=np.int32)
    order = rng.permutation(num_blocks)
    for row in range(num_rows):
        # Rows 2i and 2i + 1 share their blocks; each takes half of every block, from one side.
        own = order[row // 2 * blocks_per_row : (row // 2 + 1) * blocks_per_row]
        inside = np.arange(block_size // 2) if row % 2 == 0 else block_size - 1 - np.arange(block_size // 2)
        row_slots = (own[:, None] * block_size + inside).reshape(-1)
        table[row] = np.resize(row_slots[: longest + 5], longest + 5)
    if slots == "shuffled":
        table = rng.permutation(num_blocks * block_size).astype(np.int32)[table]
    rows = rng.permutation(num_rows)[: len(spans)]
    slot_table = torch.from_numpy(table)
    mapping = torch.from_numpy(
        np.concatenate([table[row, s : s + c] for row, (s, c) in zip(rows, spans, strict=True)])
    )

    def noise(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    num_slots, total = num_blocks * block_size, len(mapping)
    starts, counts = zip(*spans, strict=True)
    cache_dtype = dtype if cache_dtype is None else cache_dtype
    case = Case(
        q=noise(total, num_heads, size),
        k=noise(total, num_kv_heads, size),
        v=noise(total, num_kv_heads, size_v),
        k_cache=noise(num_slots, num_kv_heads, size, dtype=cache_dtype),
        v_cache=noise(num_slots, num_kv_heads, size_v, dtype=cache_dtype),
        layout=StepLayout.build(
            slot_table.to(device),
            mapping.long().to(device),
            rows,
            starts,
            counts,
            num_programs=num_programs,
            num_tile_programs=num_tile_programs,
        ),
        options=AttentionOptions(size**-0.5, window, softcap, noise(num_heads) if with_sinks else None),
    )
    if poisoned:
        written = np.concatenate([table[row, :start] for row, start in zip(rows, starts, strict=True)])
        unwritten = np.setdiff1d(np.arange(num_slots), written)
        nan = torch.full((1,), torch.nan).to(cache_dtype).to(device)
        for cache in (case.k_cache, case.v_cache):
            as_bits(cache)[unwritten] = as_bits(nan)
    return case


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as integers of the same width, in which NaN equals itself and float8 can be indexed."""
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def random_spans(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Spans of one to nine rows; lengths close to multiples of the block size are frequent."""
    edges = [0, 1, 15, 16, 17, 31, 32, 33, 48, 90]
    spans = []
    for _ in range(int(rng.integers(1, 10))):
        start = int(rng.choice(edges)) if rng.random() < 0.7 else int(rng.integers(0, 100))
        count = 1 if rng.random() < 0.5 else int(rng.integers(2, 40))
        spans.append((start, count))
    return spans
