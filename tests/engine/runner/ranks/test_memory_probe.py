"""Ranks find out before a pass whether all have the memory for it, and communicate only if they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.runner.ranks.memory_probe import LargestPass, MemoryProbe
from tests.engine.runner.driver import load_runner
from tests.engine.runner.test_out_of_memory import outputs_of, short_of_memory
from tests.factories_models import make_model

LARGEST = LargestPass(num_tokens=96, num_draws=8, num_bytes=96_000)


class OtherRank:
    """Another rank, with memory for `most_share` of the largest pass. `answers` are the minimums of both ranks."""

    device = torch.device("cpu")

    def __init__(self, most_share: float = 1.0) -> None:
        self.most_share = most_share
        self.share = 0.0  # of the pass in question; the other rank has the same plan
        self.answers: list[int] = []

    def minimum(self, value: int) -> int:
        self.answers.append(min(value, int(self.share <= self.most_share)))
        return self.answers[-1]


def memory_of(other: OtherRank, own_bytes: int = 1 << 30) -> MemoryProbe:
    def allocate(num_bytes: int) -> None:
        other.share = num_bytes / LARGEST.num_bytes
        if num_bytes > own_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    ranks: Any = other
    return MemoryProbe(ranks, LARGEST, allocate)


def test_ranks_communicate_only_for_passes_larger_than_all_before() -> None:
    other = OtherRank()
    memory = memory_of(other)
    for num_tokens, num_draws, num_answers in (
        (10, 0, 1), (10, 0, 1), (4, 0, 1), (12, 1, 2),  # an eighth of the draws, and of the tokens
        (2, 2, 3), (24, 2, 3), (20, 1, 3), (96, 8, 4), (96, 1, 4), (9, 8, 4),
    ):  # fmt: skip
        assert memory.suffices(num_tokens, num_draws)
        assert len(other.answers) == num_answers, (num_tokens, num_draws)


def test_a_pass_is_halved_if_one_rank_lacks_memory() -> None:
    for other, own_bytes in ((OtherRank(), 48_000), (OtherRank(0.5), 1 << 30)):
        memory = memory_of(other, own_bytes)
        assert memory.suffices(48, 1)
        assert not memory.suffices(49, 1)
        assert not memory.suffices(10, 5), "logits take memory too"
        assert memory.suffices(47, 4)
        assert other.answers == [1, 0, 0]


def test_a_pass_of_unknown_size_is_tried() -> None:
    memory = MemoryProbe(OtherRank(), LargestPass(96, 8, 0))  # type: ignore[arg-type]
    assert memory.suffices(96, 8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("pass-memory"))


@pytest.mark.parametrize("own_bytes", [10_000, 1 << 30])
def test_steps_are_halved_before_they_fail_and_outputs_stay_the_same(path: Path, own_bytes: int) -> None:
    expected = outputs_of(load_runner(path))
    runner = load_runner(path)
    other = OtherRank(1.0 if own_bytes == 10_000 else 10 / 96)
    runner._memory_probe, runner._has_peers = memory_of(other, own_bytes), True
    tried = short_of_memory(runner, 10)
    assert outputs_of(runner) == expected
    assert max(tried) <= 10, "no rank may fail in the middle of a pass"
    # Ranks communicate once about a length that fits, and never again about one that did not.
    assert len(other.answers) < 20 < len(tried)


def test_ranks_do_not_halve_a_pass_that_has_begun(path: Path) -> None:
    runner = load_runner(path)
    runner._memory_probe, runner._has_peers = memory_of(OtherRank()), True
    short_of_memory(runner, 10)
    with pytest.raises(torch.OutOfMemoryError):
        outputs_of(runner)
