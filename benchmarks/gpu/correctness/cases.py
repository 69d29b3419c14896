"""Steps that attention is checked with: rows of given lengths, random Q, K and V, slots scattered as in an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout
from engine.kernels.triton.decode_attention import shares_at_once
from engine.kernels.triton.prefill_attention import tiles_at_once

BLOCK_SIZE = 16
FP8_MOST = 448.0


@dataclass(frozen=True, slots=True)
class Heads:
    """Numbers of query heads and of key/value heads, and the head sizes of K and V."""

    query: int
    kv: int
    size: int
    size_v: int

    @staticmethod
    def of(query: int, kv: int, size: int, size_v: int | None = None) -> Heads:
        return Heads(query, kv, size, size_v or size)


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """A step to check. Its rows compute `count` tokens from `start` for (start, count) in `spans`; `padding` more rows
    are padding, as in a batch of fixed size."""

    name: str
    spans: Sequence[tuple[int, int]]
    heads: Heads
    dtype: torch.dtype = torch.bfloat16
    cache_dtype: torch.dtype | None = None
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    padding: int = 0


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """The data of a case. `k` and `v` are the step's own; the caches hold K and V of the tokens before it."""

    q: torch.Tensor  # [T, Hq, D]
    k: torch.Tensor  # [T, Hkv, D]
    v: torch.Tensor  # [T, Hkv, Dv]
    k_cache: torch.Tensor  # [slots, Hkv, D], NaN where nothing was stored
    v_cache: torch.Tensor  # [slots, Hkv, Dv]
    layout: StepLayout
    options: AttentionOptions

    def fresh(self) -> AttentionInputs:
        """A copy with its own caches and layout."""
        layout = replace(self.layout, scratch={})
        return replace(self, k_cache=self.k_cache.clone(), v_cache=self.v_cache.clone(), layout=layout)


def make_inputs(case: AttentionCase, device: torch.device, seed: int = 0) -> AttentionInputs:
    """Random inputs, which are the same for the same seed on the same kind of device."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device).manual_seed(seed)
    longest = max(start + count for start, count in case.spans)
    per_row = -(-longest // BLOCK_SIZE)
    num_rows = len(case.spans)
    # A few more blocks than the rows need, so that some slots are unused.
    blocks = rng.permutation(num_rows * per_row + 3)[: num_rows * per_row].reshape(num_rows, per_row, 1)
    inside = np.arange(BLOCK_SIZE)
    up = (blocks * BLOCK_SIZE + inside).reshape(num_rows, -1)
    down = (blocks * BLOCK_SIZE + inside[::-1]).reshape(num_rows, -1)
    # Chat rows take slots upward, bulk rows downward.
    table = np.where(np.arange(num_rows)[:, None] % 2 == 0, up, down)
    rows = rng.permutation(num_rows)
    own = np.concatenate([table[row, s : s + c] for row, (s, c) in zip(rows, case.spans, strict=True)])
    before = np.concatenate([table[row, :start] for row, (start, _) in zip(rows, case.spans, strict=True)])
    num_slots = (num_rows * per_row + 3) * BLOCK_SIZE
    heads, total = case.heads, len(own) + case.padding

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(case.dtype)

    cache_dtype = case.cache_dtype or case.dtype
    filled = torch.from_numpy(before).to(device)
    caches = []
    for size in (heads.size, heads.size_v):
        cache = torch.full((num_slots, heads.kv, size), torch.nan, dtype=torch.float32, device=device)
        cache[filled] = torch.randn(len(before), heads.kv, size, generator=generator, device=device)
        if cache_dtype is torch.float8_e4m3fn:
            cache = cache.clamp(-FP8_MOST, FP8_MOST)
        caches.append(cache.to(cache_dtype))
    starts, counts = (np.array(numbers) for numbers in zip(*case.spans, strict=True))
    slots = np.concatenate([own, np.full(case.padding, -1)])
    return AttentionInputs(
        q=noise(total, heads.query, heads.size),
        k=noise(total, heads.kv, heads.size),
        v=noise(total, heads.kv, heads.size_v),
        k_cache=caches[0],
        v_cache=caches[1],
        layout=_padded(
            StepLayout.build(
                torch.from_numpy(table.astype(np.int32)).to(device),
                torch.from_numpy(slots).to(device),
                rows,
                starts,
                counts,
                num_programs=shares_at_once(heads.kv, caches[0]),
                num_tile_programs=tiles_at_once(heads.query, case.dtype, *caches),
            ),
            case.padding,
        ),
        options=AttentionOptions(
            heads.size**-0.5, case.window, case.softcap, noise(heads.query) if case.has_sinks else None
        ),
    )


def _padded(layout: StepLayout, padding: int) -> StepLayout:
    """Appends `padding` rows of one token each, which count as rows of one token."""
    if not padding:
        return layout
    num_rows, device = layout.device.shape[1], layout.device.device
    first = int(layout.host[2].sum())
    offsets = np.arange(first, first + padding)
    zeros = np.zeros(padding, dtype=np.int32)
    extra = np.stack([zeros - 1, zeros, zeros, offsets]).astype(np.int32)
    more = torch.tensor([[row, 0, 1, 0] for row in range(num_rows, num_rows + padding)], device=device)
    return replace(
        layout,
        host=np.concatenate([layout.host, extra], axis=1),
        device=torch.cat([layout.device, torch.from_numpy(extra.astype(np.int64)).to(device)], dim=1),
        shares=torch.cat([layout.shares, more]),
        num_work=layout.num_work + torch.tensor([padding, 0, 0], device=device),
    )
