"""Contexts are divided so that all programs of a GPU end at about the same time."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest

from engine.kernels.shares import MAX_EXTRA_SHARES, MIN_SHARE_TOKENS, Shares, share_contexts

PROGRAMS = 49  # of an H200, for 8 heads of keys


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
