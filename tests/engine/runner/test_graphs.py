"""Which sizes of graphs exist, what is captured, and that no step is replayed by a graph of another shape."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from engine.runner.graphs import LARGEST, StepGraphs, mixed_shapes, single_shapes, step_shapes
from engine.runner.step_arrays import StepArrays, StepSizes
from engine.runner.step_inputs import StepInputs, StepTensors, pack
from tests.engine.runner.fake_device import FakeGraph, FakeGraphs
from tests.factories_models import VOCAB_SIZE

MAX_ROWS, MAX_MODEL_LEN = 7, 40
SIZES = (1, 2, 4, 7)
PLENTY = 1 << 40


def singles(sizes: tuple[int, ...]) -> list[StepSizes]:
    return [StepSizes.of_singles(size) for size in sizes]


def captured(graphs: StepGraphs) -> tuple[int, ...]:
    return tuple(shape.tokens for shape in graphs.shapes)


def test_sizes_of_single_tokens() -> None:
    assert single_shapes(0) == []
    assert single_shapes(1) == singles((1,))
    assert single_shapes(21) == singles((1, 2, 4, 8, 16, 21))
    assert single_shapes(100) == singles((1, 2, 4, *range(8, 65, 8), 80, 96, 100))
    assert single_shapes(5000)[-3:] == singles((448, 480, LARGEST))
    for max_rows in (1, 3, 4, 8, 63, 64, 65, 100, 256, 257, 300):
        shapes = single_shapes(max_rows)
        sizes = [shape.tokens for shape in shapes]
        assert sizes == sorted(set(sizes)) and sizes[-1] == max_rows
        for num_rows in range(1, max_rows + 1):
            held = [shape.holds(StepSizes.of_singles(num_rows)) for shape in shapes]
            assert held == [size >= num_rows for size in sizes]


def test_sizes_of_mixed_steps() -> None:
    assert [shape.tokens for shape in mixed_shapes(4, 20)] == [16, 32]
    assert [shape.tokens for shape in mixed_shapes(4, 65)] == [16, 32, 64, 128]
    assert [shape.tokens for shape in mixed_shapes(4, 9999)] == [16, 32, *range(64, 2049, 64)]
    assert mixed_shapes(0, 64) == []
    kinds = [[shape.tokens for shape in kind] for kind in step_shapes(4, 1100)]
    # Those that gain the most are captured first.
    assert kinds == [[1, 2, 4], [16, 32, *range(64, 1025, 64)], [1088, 1152]]
    rng = np.random.default_rng(0)
    for max_rows in (1, 4, 256, 700):
        shapes = mixed_shapes(max_rows, 2048)
        for _ in range(300):
            num_rows = int(rng.integers(1, min(max_rows, 12) + 1))
            counts = rng.choice([1, 1, 2, 63, 64, 65], num_rows)
            zeros = np.zeros(num_rows, dtype=np.int64)
            ids = np.zeros(counts.sum(), dtype=np.int64)
            step = StepArrays(zeros, zeros, zeros, counts, zeros == 0, ids, ids)
            found = next(shape for shape in shapes if shape.holds(step.sizes(num_rows)))
            assert 0 <= found.tokens - len(ids) < 64
            inputs = pack(step, np.arange(num_rows), 9, pinned=False, padded=found)
            assert len(inputs.vector) == found.total
            tensors = StepTensors.of(inputs.vector, found, torch.zeros(10, 4), inputs.host)
            num_shares, *_ = tensors.layout.num_work.tolist()
            at = tensors.layout.device[:, tensors.layout.shares[:num_shares, 0]]
            assert sorted(at[3][at[0] < 0].tolist()) == list(range(len(ids), found.tokens))
            assert (tensors.layout.device[0, tensors.layout.tiles[step.sizes(0).tiles :, 0]] == -1).all()


def bigram_graphs(
    backend: FakeGraphs | None = None, budget_bytes: int = PLENTY, sizes: tuple[int, ...] = SIZES
) -> StepGraphs:
    """Graphs of a model that is captured in no time: its logits are a row of a table for each token."""
    table = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))

    def forward(step: StepTensors) -> torch.Tensor:
        return table.index_select(0, step.token_ids).index_select(0, step.wanted)

    slot_table = torch.zeros(MAX_ROWS + 1, MAX_MODEL_LEN, dtype=torch.int32)
    return StepGraphs(forward, slot_table, [singles(sizes)], budget_bytes, backend or FakeGraphs())


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
    padded = StepSizes.of_singles(size) if size else None
    return pack(arrays, np.arange(len(arrays.rows)), MAX_ROWS, pinned=False, padded=padded)


def test_a_graph_is_never_replayed_with_another_shape() -> None:
    backend = FakeGraphs()
    graphs = bigram_graphs(backend, sizes=(2, 4))
    sequences = [Sequence(row, [10 + row]) for row in range(5)]
    three, five = arrays_of(sequences[:3]), arrays_of(sequences)
    four = StepSizes.of_singles(4)
    assert (graphs.size_for(three, 3), graphs.size_for(three, 2)) == (four, four)
    assert graphs.size_for(three, 0) is graphs.size_for(five, 5) is None
    longer = replace(three, counts=np.array([1, 2, 1]), token_ids=np.full(4, 5), slots=np.arange(4))
    assert graphs.size_for(longer, 3) is None
    exact = packed(three, 4)
    wrong = [
        packed(three),  # not padded
        packed(three, 7),  # to a size that was not captured
        packed(longer),
        replace(exact, sizes=StepSizes(4, 4, 4, 1, 4)),
        replace(exact, sizes=replace(exact.sizes, wanted=3)),
    ]
    for inputs in wrong:
        with pytest.raises(ValueError, match="graph"):
            graphs.run(inputs)
    assert not backend.num_replays
    found = graphs.run(exact)
    assert found is not None and found[0].shape == (3, VOCAB_SIZE)
    assert backend.num_replays == 1


def test_capturing_stops_when_the_budget_is_spent(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeGraphs(graph_bytes=1000)
    bigram_graphs(backend).close()
    assert not backend.graphs
    all_graphs = [bigram_graphs(backend, sizes=(size,)) for size in SIZES]
    shared = [graph.fresh_bytes for graph in backend.graphs]
    assert shared == sorted(shared) and shared[0] < shared[-1]
    for graphs in all_graphs:
        graphs.close()
    with caplog.at_level(logging.INFO, "engine.graphs"):
        assert captured(bigram_graphs(backend, shared[-1] + 2500)) == (4, 7)  # largest first, in one pool
    assert "no CUDA graph of 2 tokens" in caplog.text and "2 CUDA graphs of up to 7 tokens" in caplog.text
    assert len(backend.graphs) == 2
    for budget_bytes, sizes in ((shared[2] + 1000, (4,)), (shared[2] + 2000, (2, 4)), (0, ())):
        backend = FakeGraphs(graph_bytes=1000)
        graphs = bigram_graphs(backend, budget_bytes)
        assert captured(graphs) == sizes
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
    ("error", "num_good", "expected"),
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
    expected: tuple[int, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    graphs = bigram_graphs(Failing(error, num_good, 2))
    assert captured(graphs) == expected
    assert str(error).split("\n")[0] in caplog.text


def test_a_graph_that_cannot_be_replayed_is_not_used_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeGraphs()
    graphs = bigram_graphs(backend, sizes=(2, 4))
    two = arrays_of([Sequence(row, [10 + row]) for row in range(2)])
    expected, _ = graphs.run(packed(two, 2)) or (None, None)
    assert expected is not None
    expected = expected.clone()

    def fail(self: FakeGraph) -> None:
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(FakeGraph, "replay", fail)
        assert graphs.run(packed(two, 2)) is None
    assert "out of memory" in caplog.text and "2 tokens cannot be replayed" in caplog.text
    assert captured(graphs) == (4,) and graphs.size_for(two, 2) == StepSizes.of_singles(4)
    found = graphs.run(packed(two, 4))
    assert found is not None and torch.equal(found[0], expected)
    graphs.close()
    assert not backend.graphs  # released too


def test_without_rows_there_are_no_graphs() -> None:
    assert bigram_graphs(sizes=()).shapes == ()
