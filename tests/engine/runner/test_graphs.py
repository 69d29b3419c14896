"""Which sizes of graphs exist, what is captured, and that no step is replayed by a graph of another shape."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from engine.runner.graphs import LARGEST, DecodeGraphs, GraphSizes
from engine.runner.step_inputs import StepArrays, StepInputs, StepSizes, StepTensors, pack
from tests.engine.runner.fake_device import FakeGraph, FakeGraphs
from tests.factories_models import VOCAB_SIZE

MAX_ROWS, MAX_MODEL_LEN = 7, 40
SIZES = GraphSizes((1, 2, 4, 7))
PLENTY = 1 << 40


def test_sizes() -> None:
    assert GraphSizes.up_to(0).sizes == ()
    assert GraphSizes.up_to(1).sizes == (1,)
    assert GraphSizes.up_to(21).sizes == (1, 2, 4, 8, 16, 21)
    assert GraphSizes.up_to(100).sizes == (1, 2, 4, *range(8, 65, 8), 80, 96, 100)
    assert GraphSizes.up_to(5000).sizes[-3:] == (448, 480, LARGEST)
    for max_rows in (1, 3, 4, 8, 63, 64, 65, 100, 256, 257, 300):
        sizes = GraphSizes.up_to(max_rows)
        assert list(sizes.sizes) == sorted(set(sizes.sizes))
        for num_rows in range(1, max_rows + 1):
            padded = sizes.padded(num_rows)
            assert padded is not None and num_rows <= padded <= max_rows
            assert not any(num_rows <= size < padded for size in sizes.sizes)
        assert sizes.padded(0) is sizes.padded(max_rows + 1) is None


def bigram_graphs(
    backend: FakeGraphs | None = None, budget_bytes: int = PLENTY, sizes: GraphSizes = SIZES
) -> DecodeGraphs:
    """Graphs of a model that is captured in no time: its logits are a row of a table for each token."""
    table = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))

    def forward(step: StepTensors) -> torch.Tensor:
        return table.index_select(0, step.token_ids).index_select(0, step.wanted)

    slot_table = torch.zeros(MAX_ROWS + 1, MAX_MODEL_LEN, dtype=torch.int32)
    return DecodeGraphs(forward, slot_table, sizes, budget_bytes, backend or FakeGraphs())


@dataclass
class Sequence:
    row: int
    slots: list[int]
    next_token: int = 5  # or -1: the token that the row drew last


def arrays_of(sequences: list[Sequence]) -> StepArrays:
    rows = np.array([sequence.row for sequence in sequences])
    starts = np.array([len(sequence.slots) - 1 for sequence in sequences])
    ones = np.ones(len(sequences), dtype=np.int64)
    token_ids = np.array([sequence.next_token for sequence in sequences])
    slots = np.array([sequence.slots[-1] for sequence in sequences])
    return StepArrays(np.arange(len(rows)), rows, starts, ones, ones.astype(bool), token_ids, slots)


def packed(arrays: StepArrays, size: int = 0) -> StepInputs:
    return pack(arrays, np.arange(len(arrays.rows)), MAX_ROWS, pinned=False, size=size)


def test_a_graph_is_never_replayed_with_another_shape() -> None:
    backend = FakeGraphs()
    graphs = bigram_graphs(backend, sizes=GraphSizes((2, 4)))
    sequences = [Sequence(row, [10 + row]) for row in range(5)]
    three, five = arrays_of(sequences[:3]), arrays_of(sequences)
    assert (graphs.size_for(three, 3), graphs.size_for(three, 2), graphs.size_for(five, 5)) == (4, None, None)
    longer = replace(three, counts=np.array([1, 2, 1]), token_ids=np.full(4, 5), slots=np.arange(4))
    assert graphs.size_for(longer, 3) is None
    exact = packed(three, 4)
    two_tokens = exact.host.copy()
    two_tokens[2, 1] = 2
    wrong = [
        packed(three),  # not padded
        packed(three, 7),  # to a size that was not captured
        packed(longer),
        replace(exact, sizes=StepSizes(4, 4, 4, 1, 4)),
        replace(exact, sizes=replace(exact.sizes, wanted=3)),
        replace(exact, host=two_tokens),
        replace(exact, host=exact.host[:, :0]),
        replace(exact, sizes=StepSizes.of_singles(2)),  # fewer than its rows
    ]
    for inputs in wrong:
        with pytest.raises(ValueError, match="graph"):
            graphs.run(inputs)
    assert not backend.num_replays
    assert graphs.run(exact)[0].shape == (3, VOCAB_SIZE)
    assert backend.num_replays == 1


def test_capturing_stops_when_the_budget_is_spent(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeGraphs(graph_bytes=1000)
    bigram_graphs(backend).close()
    assert not backend.graphs
    captured = [bigram_graphs(backend, sizes=GraphSizes((size,))) for size in SIZES.sizes]
    shared = [graph.fresh_bytes for graph in backend.graphs]
    assert shared == sorted(shared) and shared[0] < shared[-1]
    for graphs in captured:
        graphs.close()
    with caplog.at_level(logging.INFO, "engine.graphs"):
        assert bigram_graphs(backend, shared[-1] + 2500).sizes.sizes == (4, 7)  # largest first, in one pool
    assert "no CUDA graph of 2 rows" in caplog.text and "2 CUDA graphs of up to 7 rows" in caplog.text
    assert len(backend.graphs) == 2
    for budget_bytes, sizes in ((shared[2] + 1000, (4,)), (shared[2] + 2000, (2, 4)), (0, ())):
        backend = FakeGraphs(graph_bytes=1000)
        graphs = bigram_graphs(backend, budget_bytes)
        assert graphs.sizes.sizes == sizes
        assert len(backend.graphs) == len(sizes)
    assert graphs.size_for(arrays_of([Sequence(1, [3])]), 1) is None


class Failing(FakeGraphs):
    """Captures `num_good` graphs, then fails `num_failures` times."""

    def __init__(self, error: Exception, num_good: int, num_failures: int) -> None:
        super().__init__()
        self.outcomes: list[Exception | None] = [None] * num_good + [error] * num_failures

    def capture(self, function: Callable[[], object]) -> FakeGraph:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        return super().capture(function)


@pytest.mark.parametrize(
    ("error", "num_good", "captured"),
    [
        (torch.OutOfMemoryError("none left"), 0, (1, 2)),  # the two largest do not fit
        (torch.OutOfMemoryError("none left"), 1, (7,)),
        (RuntimeError("operation not permitted when stream is capturing\nmore"), 0, ()),
        (RuntimeError("operation not permitted when stream is capturing\nmore"), 3, (2, 4, 7)),
    ],
)
def test_sizes_that_cannot_be_captured_run_without_graphs(
    error: Exception,
    num_good: int,
    captured: tuple[int, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    graphs = bigram_graphs(Failing(error, num_good, 2))
    assert graphs.sizes.sizes == captured
    assert str(error).split("\n")[0] in caplog.text


def test_without_rows_there_are_no_graphs() -> None:
    assert bigram_graphs(sizes=GraphSizes.up_to(0)).sizes.sizes == ()
