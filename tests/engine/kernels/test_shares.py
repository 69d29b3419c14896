"""Contexts are divided so that all programs of a GPU end at about the same time."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest

from engine.kernels.layout import SPARE_TILES, host_rows, tile_shares
from engine.kernels.shares import MAX_EXTRA_SHARES, MIN_SHARE_TOKENS, Shares, share_contexts

PROGRAMS, TILE_PROGRAMS = 49, 8  # of an H200, for 32 heads of queries and 8 of keys


def divided(contexts: list[int], num_programs: int = PROGRAMS) -> Shares:
    return share_contexts(np.arange(len(contexts)), np.array(contexts, dtype=np.int64), num_programs)


def tokens_of(work: Shares, contexts: list[int]) -> list[int]:
    """The tokens of each share in the order of the list, as kernels compute them."""
    lengths = []
    for row, number, count, _ in work.shares.tolist():
        size = max(MIN_SHARE_TOKENS, 64 * math.ceil(contexts[row] / count / 64))
        begin = number * size
        lengths.append(max(0, min(begin + size, contexts[row]) - begin))
    return lengths


def end_of(lengths: list[int], num_programs: int = PROGRAMS) -> int:
    """When the last program ends, if each takes the next share as soon as it has read one, a token at a time."""
    programs = [0] * num_programs
    for length in lengths:
        heapq.heappush(programs, heapq.heappop(programs) + length)
    return max(programs)


@pytest.mark.parametrize(
    "contexts",
    [
        [1],
        [1000],
        [8192],
        [131072],
        [1000] * 32,
        [8000] * 32,
        [3000] * 256,
        [12000] * 64,
        [16000] + [1000] * 64,
        [100000] + [200] * 255,
        list(range(1, 5000, 37)),
    ],
    ids=lambda contexts: f"{len(contexts)} rows, up to {max(contexts)}",
)
def test_no_program_reads_much_more_than_its_part(contexts: list[int]) -> None:
    work = divided(contexts)
    lengths = tokens_of(work, contexts)
    assert sum(lengths) == sum(contexts), "all tokens are read once"
    assert len(lengths) <= len(contexts) + MAX_EXTRA_SHARES
    equal_parts = max(sum(contexts) / PROGRAMS, min(max(contexts), MIN_SHARE_TOKENS))
    assert end_of(lengths) <= 1.25 * equal_parts + MIN_SHARE_TOKENS
    assert lengths == sorted(lengths, reverse=True) or max(work.shares[:, 2]) > 1


def test_rows_of_several_shares_are_merged_from_parts_of_their_own() -> None:
    contexts = [3000, 10, 9000, 127, 128, 129]
    work = divided(contexts)
    taken = [first + number for _, number, count, first in work.shares.tolist() if count > 1]
    assert len(set(taken)) == len(taken) and max(taken) < len(work.shares)
    by_row = {row: (first, count) for row, _, count, first in work.shares.tolist() if count > 1}
    assert {row: (first, count) for row, first, count in work.merges.tolist()} == by_row
    assert {0, 2} <= set(by_row) and not {1, 3, 4} & set(by_row)
    for row in range(len(contexts)):
        numbers = sorted(number for other, number, _, _ in work.shares.tolist() if other == row)
        assert numbers == list(range(len(numbers)))


def test_the_longest_shares_come_first() -> None:
    assert divided([5, 300, 40, 20000, 7], 1).shares[:, 0].tolist()[-3:] == [2, 4, 0]


def test_a_backend_that_divides_contexts_itself_gets_whole_rows() -> None:
    work = divided([100000, 3, 70], num_programs=0)
    assert work.shares.tolist() == [[0, 0, 1, 0], [2, 0, 1, 0], [1, 0, 1, 0]] and not len(work.merges)
    assert not len(divided([]).shares)


def test_captured_graphs_have_room_for_any_contexts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        contexts = rng.integers(1, 2 ** rng.integers(1, 18), rng.integers(1, 300))
        work = share_contexts(np.arange(len(contexts)), contexts, int(rng.choice([1, 3, 49, 396])))
        extra = len(work.shares) - len(contexts)
        assert len(work.merges) <= extra <= MAX_EXTRA_SHARES


def tiled(spans: list[tuple[int, int]], num_programs: int = TILE_PROGRAMS) -> Shares:
    starts, counts = zip(*spans, strict=True)
    return tile_shares(host_rows(range(len(spans)), starts, counts), num_programs)


def tile_ends(work: Shares, spans: list[tuple[int, int]]) -> list[float]:
    """The tokens of each share in the order of the list."""
    lengths = []
    for row, first, _, count, _ in work.shares.tolist():
        start, num_tokens = spans[row]
        lengths.append((start + min(first + 64, num_tokens)) / count)
    return lengths


@pytest.mark.parametrize(
    ("spans", "least_gain"),
    [
        ([(8192, 100)], 3.0),  # two tiles
        ([(65536, 100)], 3.5),
        ([(8192, 2)], 4.0),
        ([(30000, 512)], 1.0),  # as many tiles as programs
        ([(16000, 640)], 1.3),  # ten
        ([(3000, 30), (9000, 64), (500, 200)], 1.5),
    ],
    ids=str,
)
def test_a_short_chunk_after_a_long_context_uses_the_whole_gpu(
    spans: list[tuple[int, int]], least_gain: float
) -> None:
    work, whole = tiled(spans), tiled(spans, 0)
    lengths = tile_ends(work, spans)
    assert lengths == sorted(lengths, reverse=True)
    assert sum(lengths) == pytest.approx(sum(tile_ends(whole, spans))), "all tokens are read once"
    end = end_of(lengths, TILE_PROGRAMS)
    assert end_of(tile_ends(whole, spans), TILE_PROGRAMS) >= least_gain * end
    assert end <= 1.5 * sum(lengths) / TILE_PROGRAMS + 256


@pytest.mark.parametrize(
    "spans", [[(0, 500)], [(400, 64)], [(8000, 2048)], [(900, 70)], [(100000, 8192)]], ids=str
)
def test_tiles_are_whole_where_merging_gains_nothing(spans: list[tuple[int, int]]) -> None:
    work = tiled(spans)
    assert (work.shares[:, 3] == 1).all() and not len(work.merges)


def test_captured_graphs_have_room_for_the_shares_of_any_tiles() -> None:
    rng = np.random.default_rng(1)
    num_split = 0
    for _ in range(300):
        num_rows = int(rng.integers(1, 20))
        starts = rng.integers(0, 2 ** rng.integers(1, 17), num_rows)
        counts = rng.integers(1, 2 ** rng.integers(2, 9), num_rows)
        work = tiled(list(zip(starts.tolist(), counts.tolist(), strict=True)), int(rng.choice([1, 2, 8, 66])))
        num_tiles = int((-(-counts[counts > 1] // 64)).sum())
        assert len(work.shares) <= max(num_tiles, counts.sum() // 64 + SPARE_TILES)
        assert len(work.merges) <= len(work.shares) // 2
        num_split += len(work.merges) > 0
        listed = {
            (row, first): (count, part) for row, first, _, count, part in work.shares.tolist() if count > 1
        }
        assert listed == {(row, first): (count, part) for row, first, part, count in work.merges.tolist()}
        parts = [part + number for _, _, number, count, part in work.shares.tolist() if count > 1]
        assert sorted(parts) == list(range(len(parts)))
    assert num_split > 25
