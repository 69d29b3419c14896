"""Steps of a real model, replayed from graphs, compute the same as without graphs.

Without a GPU, a fake backend records and replays them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout
from engine.kernels.reference import attention as reference
from engine.runner.cuda_graphs import CudaGraphs
from engine.runner.graphs import GraphBackend, StepGraphs
from engine.runner.kv.memory import allocate_kv
from engine.runner.model.attention import IMPLEMENTATION, PackedStep
from engine.runner.model.causal_lm import CausalLM
from engine.runner.model.discovery import discover_layers
from engine.runner.step_arrays import StepArrays
from engine.runner.step_inputs import StepTensors
from tests.engine.runner.fake_device import FakeGraphs
from tests.engine.runner.test_graphs import (
    MAX_MODEL_LEN,
    MAX_ROWS,
    PLENTY,
    SIZES,
    Sequence,
    arrays_of,
    captured,
    packed,
    singles,
)
from tests.factories_models import VOCAB_SIZE, make_model

NUM_SLOTS = 200
TOLERANCE = (
    1e-3  # of logits that spread by more than 1: sums in batches of other shapes are rounded differently
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    path: Path = make_model("llama", tmp_path_factory.mktemp("model"), seed=1, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=IMPLEMENTATION).eval()
    cpu = torch.device("cpu")
    layers = discover_layers(model)
    return CausalLM(model, cpu, torch.float32, layers, VOCAB_SIZE, MAX_MODEL_LEN, frozenset(), True)


def attend_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    layout: StepLayout,
    options: AttentionOptions,
) -> torch.Tensor:
    """Attention of single-token rows like that of a kernel: shapes come from the layout, everything else is read on the
    device. The cache's last slot, -1, takes the tokens that are stored nowhere."""
    k_cache[layout.slot_mapping], v_cache[layout.slot_mapping] = k, v
    rows, starts = layout.device[0], layout.device[1]
    if "visible" not in layout.scratch:  # once for all layers
        layout.scratch["visible"] = (
            torch.arange(layout.slot_table.shape[1], device=rows.device) <= starts[:, None]
        )
    slots = layout.slot_table[rows.clamp(min=0)].long()  # [n, max_model_len]
    group = q.shape[1] // k.shape[1]
    keys = k_cache[slots].repeat_interleave(group, dim=2)
    values = v_cache[slots].repeat_interleave(group, dim=2)
    scores = torch.einsum("nhd,nkhd->nhk", q, keys) * options.scale
    hidden = ~layout.scratch["visible"][:, None, :]
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    out = torch.einsum("nhk,nkhd->nhd", weights, values)
    return torch.where((rows >= 0)[:, None, None], out, torch.zeros_like(out))


def attend_by_host_numbers(*arguments: Any) -> torch.Tensor:
    """Attention that is wrong in a graph, since Python decides how much of the context is read."""
    *tensors, layout, options = arguments
    longest = int(layout.host[1].max()) + 1
    narrowed = replace(layout, slot_table=layout.slot_table[:, :longest], scratch={})
    return attend_rows(*tensors, narrowed, options)


class Data:
    """A model with its caches and tables, as in a runner."""

    def __init__(self, model: CausalLM, op: Any) -> None:
        self.model, self.op = model, op
        device = model.device
        self.slot_table = torch.zeros(MAX_ROWS + 1, MAX_MODEL_LEN, dtype=torch.int32, device=device)
        self.drawn = torch.zeros(MAX_ROWS + 1, dtype=torch.int64, device=device)
        self.caches = allocate_kv(model.layers, NUM_SLOTS + 1, torch.float32, model.device)

    def forward(self, step: StepTensors) -> torch.Tensor:
        token_ids = torch.where(step.token_ids < 0, self.drawn[step.token_rows], step.token_ids)
        self.slot_table[step.token_rows, step.positions] = step.layout.slot_mapping.int()
        packed = PackedStep(step.layout, self.caches, self.op)
        return self.model.forward(token_ids, step.positions, packed, step.wanted)

    def graphs(self, backend: GraphBackend | None = None, sizes: tuple[int, ...] = SIZES) -> StepGraphs:
        return StepGraphs(self.forward, self.slot_table, [singles(sizes)], PLENTY, backend or FakeGraphs())

    def stored(self) -> list[torch.Tensor]:
        """Everything that a step changes, except what padding may write to."""
        caches = [part[:-1] for cache in self.caches.values() for part in (cache.k, cache.v)]
        return [self.slot_table[:-1], *caches]


def eager(data: Data, arrays: StepArrays) -> torch.Tensor:
    inputs = packed(arrays)
    vector = inputs.vector.to(data.slot_table.device)
    step = StepTensors.of(vector, inputs.sizes, data.slot_table, inputs.host)
    with torch.inference_mode():
        return data.forward(step)


def steps(seed: int, num_steps: int) -> Iterator[StepArrays]:
    """Yields steps of random sets of up to MAX_ROWS sequences, one token each, in random slots."""
    rng = random.Random(seed)
    free = rng.sample(range(NUM_SLOTS), NUM_SLOTS)
    sequences = [Sequence(row, []) for row in rng.sample(range(MAX_ROWS), MAX_ROWS)]
    for _ in range(num_steps):
        chosen = rng.sample(sequences, rng.choice((1, 2, 3, 4, 5, 6, 7)))
        for sequence in chosen:
            if sequence.slots:
                sequence.next_token = rng.choice((-1, rng.randrange(3, VOCAB_SIZE)))
            sequence.slots.append(free.pop())
        yield arrays_of(chosen)


def agree(model: CausalLM, op: Any, seed: int, num_steps: int) -> bool:
    """Whether steps by graph equal the same steps without graphs, in their logits and in all that they store."""
    replayed, plain = Data(model, op), Data(model, reference.attention)
    graphs = replayed.graphs(CudaGraphs(model.device) if model.device.type == "cuda" else FakeGraphs())
    for arrays in steps(seed, num_steps):
        size = graphs.size_for(arrays, len(arrays.rows))
        assert size is not None
        replay = graphs.run(packed(arrays, size.tokens))
        assert replay is not None
        logits, rows = replay
        expected = eager(plain, arrays)
        assert rows.tolist() == arrays.rows.tolist()
        if not torch.allclose(logits, expected, atol=TOLERANCE):
            return False
        for data in (replayed, plain):
            data.drawn[arrays.rows] = expected.argmax(dim=-1)
    pairs = zip(replayed.stored(), plain.stored(), strict=True)
    return all(torch.allclose(ours, other, atol=TOLERANCE) for ours, other in pairs)


@pytest.mark.parametrize("seed", range(2))
def test_a_replay_computes_the_same_as_the_step(llama: CausalLM, seed: int) -> None:
    assert agree(llama, attend_rows, seed, num_steps=15)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_replay_on_a_gpu_computes_the_same_as_the_step(llama: CausalLM) -> None:
    gpu = torch.device("cuda", torch.cuda.current_device())
    on_gpu = replace(llama, model=copy.deepcopy(llama.model).to(gpu), device=gpu)
    assert agree(on_gpu, attend_rows, seed=3, num_steps=25)
    assert not agree(on_gpu, attend_by_host_numbers, seed=3, num_steps=25)


def test_a_graph_repeats_decisions_of_python(llama: CausalLM) -> None:
    assert not agree(llama, attend_by_host_numbers, seed=0, num_steps=15)


def test_captures_store_nothing(llama: CausalLM) -> None:
    data = Data(llama, attend_rows)
    for tensor in data.stored():
        tensor.fill_(7)
    before = [tensor.clone() for tensor in data.stored()]
    graphs = data.graphs()
    assert captured(graphs) == SIZES
    assert all(torch.equal(ours, other) for ours, other in zip(data.stored(), before, strict=True))


def test_a_model_that_reads_values_runs_without_graphs(
    llama: CausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    def by_value(*arguments: Any) -> torch.Tensor:
        if int(arguments[-2].device[2].sum()) < 0:
            raise AssertionError
        return attend_rows(*arguments)

    assert Data(llama, by_value).graphs(sizes=(1, 2)).shapes == ()
    assert "the host waits" in caplog.text


def test_a_graph_does_not_rely_on_memory_that_others_share(llama: CausalLM) -> None:
    """Running another graph destroys a graph's intermediates, but not its logits."""
    backend = FakeGraphs()
    data = Data(llama, attend_rows)
    graphs = data.graphs(backend, (1, 2))
    one, two = arrays_of([Sequence(3, [8])]), arrays_of([Sequence(1, [9]), Sequence(2, [7])])
    expected = [eager(Data(llama, reference.attention), arrays) for arrays in (one, two)]
    for arrays, size, logits in ((one, 1, expected[0]), (two, 2, expected[1]), (one, 1, expected[0])):
        replay = graphs.run(packed(arrays, size))
        assert replay is not None
        backend.reuse_memory()
        assert torch.allclose(replay[0], logits, atol=TOLERANCE)
