"""Attention in Triton against the reference, on random steps, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from engine.kernels import dispatch, shares
from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout
from engine.kernels.reference import attention as reference
from engine.kernels.reference.slots import store_kv
from engine.kernels.shares import MAX_EXTRA_SHARES
from engine.kernels.triton import attention as triton_attention
from engine.kernels.triton import attention_inputs
from tests.engine.kernels.steps import Case, as_bits, random_case, random_spans

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP8 = torch.float8_e4m3fn
# bfloat16 has 8 bits: results of size about 1 are 1/256 apart, and weights are rounded to it before the second product.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    layout: StepLayout,
    options: AttentionOptions,
) -> torch.Tensor:
    """`triton_attention.attention` with an output that is NaN where it is not written."""
    store_kv(k, v, k_cache, v_cache, layout.slot_mapping)
    out = torch.full((*q.shape[:2], v.shape[2]), torch.nan, dtype=q.dtype, device=q.device)
    triton_attention.attend_stored(q, k_cache, v_cache, layout, options, out)
    return out


def case_of(seed: int, spans: list[tuple[int, int]], **settings: Any) -> Case:
    settings = {"num_programs": 8, "num_tile_programs": 8, **settings}
    return random_case(seed, spans, poisoned=True, device=DEVICE, **settings)


def split_into(case: Case, num_splits: int) -> Case:
    """The case with as many shares for each row of one token, whether it has as many tokens or not."""
    layout = case.layout
    singles = np.flatnonzero(layout.host[2] == 1)
    is_split = num_splits > 1
    listed = [
        (row, number, num_splits, i * num_splits * is_split)
        for i, row in enumerate(singles)
        for number in range(num_splits)
    ]
    merges = [(row, i * num_splits, num_splits) for i, row in enumerate(singles) if is_split]

    def sent(values: list[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=case.q.device)

    work = {
        "shares": sent(listed).view(-1, 4),
        "merges": sent(merges).view(-1, 3),
        "num_work": sent([len(listed), len(merges), len(layout.tile_merges)]),
    }
    return dataclasses.replace(case, layout=dataclasses.replace(layout, **work))


def tiles_split_into(case: Case, num_splits: int) -> Case:
    """The case with as many shares for each tile, in any order."""
    layout, rng = case.layout, np.random.default_rng(num_splits)
    tiles = [(row, first) for row, first, number, *_ in layout.tiles.tolist() if number == 0]
    listed = [
        (*tile, number, num_splits, i * num_splits)
        for i, tile in enumerate(tiles)
        for number in range(num_splits)
    ]
    merges = [(*tile, i * num_splits, num_splits) for i, tile in enumerate(tiles)]

    def sent(values: list[Any]) -> torch.Tensor:
        return torch.tensor(rng.permutation(values), dtype=torch.int64, device=case.q.device)

    num_work = layout.num_work.clone()
    num_work[2] = len(merges)
    changed = {"tiles": sent(listed), "tile_merges": sent(merges), "num_work": num_work}
    return dataclasses.replace(case, layout=dataclasses.replace(layout, **changed))


def assert_like_reference(case: Case, op: Any = attention) -> None:
    out, k_cache, v_cache = case.run(op)
    expected, k_expected, v_expected = case.run(reference.attention)
    assert out.dtype is expected.dtype
    assert torch.equal(as_bits(k_cache), as_bits(k_expected))
    assert torch.equal(as_bits(v_cache), as_bits(v_expected))
    tolerance = TOLERANCE[case.q.dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def split_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes shares one block long, so that short contexts are split as long ones are."""
    monkeypatch.setattr(shares, "MIN_SHARE_TOKENS", 16)
    monkeypatch.setattr(shares, "_BLOCK", 16)
    monkeypatch.setattr(shares, "_MIN_TILE_SHARE_TOKENS", 16)
    monkeypatch.setattr(shares, "_MERGE_TOKENS", 0)


@pytest.mark.parametrize("seed", range(5))
def test_random_steps(seed: int, split_often: None) -> None:
    rng = np.random.default_rng(seed)
    num_kv_heads = int(rng.choice([1, 2]))
    assert_like_reference(
        case_of(
            seed,
            random_spans(rng)[:4],
            heads=(num_kv_heads * int(rng.choice([1, 2, 3])), num_kv_heads),
            size=int(rng.choice([8, 16, 24, 64])),
            window=None if rng.random() < 0.4 else int(rng.choice([1, 2, 16, 17, 33, 200])),
            softcap=None if rng.random() < 0.7 else 4.0,
            with_sinks=rng.random() < 0.3,
            slots="sides" if rng.random() < 0.5 else "shuffled",
        )
    )


@pytest.mark.parametrize("size", [64, 80, 96, 128, 192, 256])
def test_head_sizes(size: int) -> None:
    assert_like_reference(case_of(size, [(40, 1), (3, 9)], heads=(2, 1), size=size))


@pytest.mark.parametrize("group", [1, 3, 8, 40])
def test_query_heads_that_share_a_key_head(group: int) -> None:
    """40 heads are more than one program takes for rows of one token, and not a power of two."""
    assert_like_reference(
        case_of(group, [(17, 1), (2, 3)], heads=(group, 1) if group > 8 else (2 * group, 2))
    )


@pytest.mark.parametrize("settings", [{}, {"window": 63, "softcap": 2.0, "with_sinks": True}], ids=str)
def test_both_sides_of_a_block_and_a_tile(settings: dict[str, Any], split_often: None) -> None:
    """Blocks of keys are 64 and 32 tokens, tiles 64, and 16 in float32."""
    singles = [(length - 1, 1) for length in (1, 31, 32, 33, 63, 64, 65, 127, 129)]
    chunks = [(0, 15), (31, 17), (32, 16), (63, 2), (64, 17), (0, 65)]
    assert_like_reference(case_of(1, singles + chunks, heads=(1, 1), slots="shuffled", **settings))


@pytest.mark.parametrize("spans", [[(63, 1)], [(0, 1), (5, 1)], [(0, 2)], [(70, 66), (0, 3)]])
def test_steps_of_one_kind_of_row(spans: list[tuple[int, int]], split_often: None) -> None:
    assert_like_reference(case_of(2, spans, heads=(2, 1)))


@pytest.mark.parametrize(
    ("dtype", "heads"), [(torch.bfloat16, (2, 1)), (torch.bfloat16, (3, 1)), (torch.float16, (4, 2))]
)
def test_half_precision(dtype: torch.dtype, heads: tuple[int, int], split_often: None) -> None:
    case = case_of(3, [(140, 1), (30, 66), (0, 1)], heads=heads, dtype=dtype, window=100, with_sinks=True)
    assert_like_reference(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("by_instruction", [True, False])
def test_float8_caches(
    dtype: torch.dtype, by_instruction: bool, monkeypatch: pytest.MonkeyPatch, split_often: None
) -> None:
    if by_instruction and DEVICE == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU cannot convert float8")
    monkeypatch.setattr(attention_inputs, "converts_fp8", lambda _device: by_instruction)
    assert_like_reference(
        case_of(4, [(70, 1), (0, 1), (5, 20)], dtype=dtype, cache_dtype=FP8, slots="shuffled")
    )


def test_values_may_have_another_size_than_keys(split_often: None) -> None:
    assert_like_reference(case_of(5, [(90, 1), (3, 9), (0, 1)], size=24, size_v=40))


@pytest.mark.parametrize(
    ("num_splits", "settings"), [(2, {}), (30, {}), (5, {"window": 100, "with_sinks": True})], ids=str
)
def test_more_shares_than_tokens_or_fewer(
    num_splits: int, settings: dict[str, Any], split_often: None
) -> None:
    """A window has fewer tokens than the context for which the shares were chosen. More than 16 shares take a second
    iteration to merge."""
    case = case_of(6, [(0, 1), (3, 1), (1100, 1), (64, 1)], heads=(2, 1), **settings)
    assert_like_reference(split_into(case, num_splits))


def test_contexts_are_split_with_the_default_limits_too() -> None:
    case = case_of(7, [(600, 1), (20, 1)], heads=(2, 1))
    assert case.layout.num_work.tolist() == [6, 1, 0]
    assert_like_reference(case)


def test_a_short_chunk_after_a_long_context_is_split() -> None:
    case = case_of(15, [(1500, 70), (20, 1), (3, 9)], heads=(2, 1), dtype=torch.bfloat16)
    layout = case.layout
    assert layout.num_work.tolist()[2] == len(layout.tile_merges) == 2 and len(layout.tiles) > 6
    assert_like_reference(case)


@pytest.mark.parametrize(
    ("num_splits", "settings"),
    [(2, {}), (9, {"dtype": torch.bfloat16}), (5, {"window": 100, "with_sinks": True}), (4, {"window": 5})],
    ids=str,
)
def test_more_shares_of_a_tile_than_tokens_or_fewer(
    num_splits: int, settings: dict[str, Any], split_often: None
) -> None:
    """A window has fewer tokens than the context for which the shares were chosen, and a share may begin after some
    of a tile's queries. In float32, four programs compute a tile."""
    case = case_of(16, [(300, 70), (0, 2), (64, 65), (5, 1)], heads=(2, 1), **settings)
    assert_like_reference(tiles_split_into(case, num_splits))


def test_scores_far_apart_neither_overflow_nor_vanish(split_often: None) -> None:
    case = case_of(8, [(150, 1), (0, 1), (60, 10)], heads=(2, 1))
    case.q.mul_(300.0)
    out, _, _ = case.run(attention)
    expected, _, _ = case.run(reference.attention)
    # Scores of some hundreds carry errors of some 1e-4, which the exponential makes relative ones.
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


def test_heads_that_are_not_contiguous() -> None:
    """As a model's projection and rotation return them: [Hq, T, D] viewed as [T, Hq, D], or parts of a wider tensor."""
    case = case_of(9, [(40, 1), (3, 9)])
    apart = {
        "q": case.q.transpose(0, 1).contiguous().transpose(0, 1),
        "k": torch.cat([case.k, case.k], dim=1)[:, :2],
        "v": case.v.transpose(1, 2).contiguous().transpose(1, 2),
    }
    assert_like_reference(dataclasses.replace(case, **apart), triton_attention.attention)


def padded_like_a_graph(case: Case, num_rows: int) -> Case:
    """The step of single rows as a captured graph of `num_rows` rows sees it."""
    layout, device = case.layout, case.q.device
    extra = num_rows - layout.host.shape[1]
    padding = torch.tensor([[-1], [7], [0], [0]], device=device).repeat(1, extra)
    padding[3] = torch.arange(num_rows - extra, num_rows)
    num_shares, num_merges = len(layout.shares), len(layout.merges)
    room = (num_rows + MAX_EXTRA_SHARES, min(num_rows, MAX_EXTRA_SHARES))
    listed = torch.zeros(room[0], 4, dtype=torch.int64, device=device)
    merges = torch.zeros(room[1], 3, dtype=torch.int64, device=device)
    listed[:num_shares], merges[:num_merges] = layout.shares, layout.merges
    listed[num_shares : num_shares + extra] = torch.tensor([0, 0, 1, 0], device=device)
    listed[num_shares : num_shares + extra, 0] = torch.arange(num_rows - extra, num_rows)
    none = torch.full((extra,), -1, device=device)
    q, k, v = (torch.cat([x, x[:1].expand(extra, -1, -1)]) for x in (case.q, case.k, case.v))
    return dataclasses.replace(
        case,
        q=q,
        k=k,
        v=v,
        layout=dataclasses.replace(
            layout,
            slot_mapping=torch.cat([layout.slot_mapping, none]),
            device=torch.cat([layout.device, padding], dim=1),
            shares=listed,
            merges=merges,
            num_work=torch.tensor([num_shares + extra, num_merges, 0], device=device),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("num_splits", [1, 3])
def test_padding_rows_read_and_store_nothing(num_splits: int, split_often: None) -> None:
    case = split_into(case_of(10, [(130, 1), (0, 1), (5, 1)], heads=(2, 1)), num_splits)
    case = padded_like_a_graph(case, 6)
    assert_like_reference(case)
    assert_like_reference(case, triton_attention.attention)
    out, _, _ = case.run(attention)
    assert not out[3:].any()


def test_a_layout_may_be_filled_again(split_often: None) -> None:
    """As a captured graph does: the same launches with other numbers in the same tensors."""
    first = padded_like_a_graph(case_of(11, [(130, 1), (0, 1), (5, 1)], heads=(2, 1)), 4)
    second = padded_like_a_graph(case_of(12, [(250, 1), (64, 1)], heads=(2, 1)), 4)
    attention(first.q, first.k, first.v, first.k_cache, first.v_cache, first.layout, first.options)
    layout = dataclasses.replace(
        first.layout, slot_table=second.layout.slot_table, slot_mapping=second.layout.slot_mapping
    )
    assert all(padded.layout.num_work[1] for padded in (first, second))  # contexts were split
    for name in ("device", "shares", "merges", "num_work"):
        getattr(layout, name).copy_(getattr(second.layout, name))
    args = (second.q, second.k, second.v, second.k_cache.clone(), second.v_cache.clone(), layout)
    out = attention(*args, second.options)
    expected, _, _ = second.run(reference.attention)
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)


def test_padding_rows_of_a_longer_step() -> None:
    case = case_of(13, [(20, 5), (4, 1)])
    layout = case.layout
    more = torch.tensor([[0, 64, 0, 1, 0], [2, 0, 0, 1, 0]], device=DEVICE)  # past a row's end; padding
    padding = torch.tensor([[-1], [0], [9], [0]], device=DEVICE)
    changed = {
        "device": torch.cat([layout.device, padding], dim=1),
        "tiles": torch.cat([layout.tiles, more]),
        "tile_merges": torch.zeros(2, 4, dtype=torch.int64, device=DEVICE),
    }
    assert_like_reference(dataclasses.replace(case, layout=dataclasses.replace(layout, **changed)))


def test_bad_input_is_rejected() -> None:
    case = case_of(14, [(3, 1)], heads=(4, 2))

    def rejected(match: str, **changes: Any) -> None:
        q, k_cache = changes.pop("q", case.q), changes.pop("k_cache", case.k_cache)
        empty = torch.empty(*q.shape[:2], case.v.shape[2], dtype=q.dtype, device=DEVICE)
        out = changes.pop("out", empty)
        options = dataclasses.replace(case.options, **changes)
        with pytest.raises(ValueError, match=match):
            triton_attention.attend_stored(q, k_cache, case.v_cache, case.layout, options, out)

    rejected("cannot share 2 key/value heads", q=case.q[:, :3])
    rejected("do not match Q", q=case.q[..., :8])
    rejected("attention computes", q=case.q.double())
    rejected("caches are", k_cache=case.k_cache.half())
    rejected("must be contiguous", k_cache=case.k_cache.transpose(1, 2).contiguous().transpose(1, 2))
    rejected("the output is", out=case.q[:, :2])
    rejected("sees nothing", window=0)
    rejected("not positive", softcap=-1.0)
    rejected("sinks of shape", sinks=torch.zeros(3, device=DEVICE))


def test_the_op_of_a_gpu_is_this_one() -> None:
    assert dispatch.attention_op(torch.device("cuda")) is triton_attention.attention
    assert dispatch.attention_op(torch.device("cpu"), "triton") is triton_attention.attention
