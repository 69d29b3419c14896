"""The GPU decoder compared with transformers' own modules. On a CPU its kernels run in Triton's interpreter."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from engine.kernels.attention_options import AttentionOptions
from engine.kernels.layout import StepLayout
from engine.kernels.reference import attention as reference
from engine.runner.kv.memory import LayerCache, LayerShape
from engine.runner.model import loading
from engine.runner.model.causal_lm import CausalLM
from engine.runner.model.decoder import is_llama_like
from engine.runner.model.loading import load_model
from tests.factories_models import make_model

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from engine.kernels.triton.linear import TILINGS
from engine.runner.model.fused_gpu import GpuDecoder
from engine.runner.model.linear_gpu import LinearWeights, TunedLinear

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
ROW, OTHER_ROW = 2, 0
NUM_SLOTS = 64
# Two sequences: the first is computed in two chunks, then both continue by one token.
SEQUENCE, OTHER = [5, 9, 200, 31, 77, 8], [8, 120]


def attend_by_reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    layout: StepLayout,
    options: AttentionOptions,
    out: torch.Tensor,
) -> None:
    """The reference for the attention kernels, which is fast where Triton's interpreter would be slow."""
    nothing = torch.zeros(len(q), *k_cache.shape[1:], dtype=q.dtype, device=q.device)
    stored = dataclasses.replace(layout, slot_mapping=torch.full_like(layout.slot_mapping, -1))
    out.copy_(reference.attention(q, nothing, nothing, k_cache, v_cache, stored, options))


class Steps:
    """Runs steps of a decoder over rows with scattered slots, in caches that contain poison where nothing was
    stored."""

    def __init__(self, path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
        self.model.to(DEVICE).eval()
        config = self.model.config
        heads = (config.num_key_value_heads, config.head_dim)
        taken = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(DEVICE).eval()
        window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
        shape = LayerShape(config.num_attention_heads, *heads, heads[1], window)
        layers = dict.fromkeys(range(config.num_hidden_layers), shape)
        self.decoder = GpuDecoder(taken, layers, 256, **{"attend": attend_by_reference, **options})
        self.taken = taken
        self.caches = {
            layer: LayerCache(*self._poisoned(NUM_SLOTS, *heads, dtype=dtype), window)
            for layer in range(config.num_hidden_layers)
        }
        slots = torch.randperm(NUM_SLOTS, generator=torch.Generator().manual_seed(0))
        self.slot_table = slots[: 3 * 16].view(3, 16).int().to(DEVICE)

    @staticmethod
    def _poisoned(*shape: int, dtype: torch.dtype) -> list[torch.Tensor]:
        return [torch.full(shape, torch.nan, dtype=dtype, device=DEVICE) for _ in range(2)]

    def inputs(
        self, parts: Sequence[tuple[int, int, list[int]]], wanted: list[int], padding: int = 0
    ) -> tuple[Any, ...]:
        """The decoder's arguments for `parts` (row, start and token ids), followed by `padding` rows of padding."""
        rows, starts, ids = zip(*parts, strict=True)
        counts = [len(part) for part in ids]
        spans = list(zip(rows, starts, counts, strict=True))
        slots = torch.cat([self.slot_table[row, start : start + count] for row, start, count in spans])
        nothing = [0] * padding
        layout = StepLayout.build(
            self.slot_table,
            torch.cat([slots.long(), torch.full((padding,), -1, device=DEVICE)]),
            [*rows, *[-1] * padding],
            [*starts, *nothing],
            [*counts, *nothing],
        )
        positions = [start + i for _, start, count in spans for i in range(count)]
        numbers = ([*itertools.chain(*ids), *nothing], [*positions, *nothing], [*wanted, *nothing])
        token_ids, positions, picked = (torch.tensor(n, dtype=torch.int64, device=DEVICE) for n in numbers)
        return token_ids, positions, layout, self.caches, picked

    def run(
        self, parts: Sequence[tuple[int, int, list[int]]], wanted: list[int], padding: int = 0
    ) -> torch.Tensor:
        return self.decoder.forward(*self.inputs(parts, wanted, padding)).float()

    def own(self, token_ids: list[int]) -> torch.Tensor:
        """The logits [V] after the tokens, computed by transformers."""
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.tensor([token_ids], device=DEVICE)).logits[0, -1].float()
            return logits

    def assert_same(self, computed: torch.Tensor, token_ids: list[int], tolerance: float) -> None:
        expected = self.own(token_ids)
        assert (computed - expected).abs().max() < tolerance * expected.std()
        if tolerance < 1e-3:
            assert computed.argmax() == expected.argmax()

    def check(self, tolerance: float) -> None:
        """Compares chunks, a short prompt beside a chunk, and single tokens."""
        (first,) = self.run([(ROW, 0, SEQUENCE[:2]), (OTHER_ROW, 0, OTHER[:1])], [1])
        self.assert_same(first, SEQUENCE[:2], tolerance)
        logits = self.run([(OTHER_ROW, 1, OTHER[1:]), (ROW, 2, SEQUENCE[2:5])], [3, 0])
        self.assert_same(logits[0], SEQUENCE[:5], tolerance)
        self.assert_same(logits[1], OTHER, tolerance)
        logits = self.run([(ROW, 5, SEQUENCE[5:]), (OTHER_ROW, 2, [3])], [0, 1])
        self.assert_same(logits[0], SEQUENCE, tolerance)
        self.assert_same(logits[1], [*OTHER, 3], tolerance)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_it_computes_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    window = {"sliding_window": 3} if kind == "mistral" else {}
    Steps(make_model(kind, tmp_path, seed=1, **TINY, **window)).check(1e-4)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("qwen2", torch.bfloat16), ("qwen3", torch.bfloat16), ("llama", torch.float16)]
)
def test_16_bits(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Values are rounded as in transformers; sums are in another order, and attention weights are in float32."""
    path = make_model(kind, tmp_path, seed=1, **TINY)
    Steps(path, dtype).check(0.1 if dtype is torch.bfloat16 else 0.015)


def test_linear_layers_by_our_own_kernel(tmp_path: Path) -> None:
    """All of them return parts, which the next kernel adds up. Qwen2 has biases too."""
    path = make_model("qwen2", tmp_path, seed=1, **TINY | {"hidden_size": 512, "intermediate_size": 512})
    steps = Steps(path, tune=lambda _: TunedLinear([dataclasses.replace(TILINGS[0], columns=64)] * 3))
    shapes = []
    linears = steps.decoder._linears
    for name in ("qkv", "output", "gate_up", "down", "head"):
        kind: TunedLinear = getattr(linears, name)

        def noted(weight: LinearWeights, x: torch.Tensor, kind: TunedLinear = kind) -> torch.Tensor:
            out = kind(weight, x)
            shapes.append(out.shape)
            return out

        linears = dataclasses.replace(linears, **{name: noted})
    steps.decoder._linears = linears
    logits = steps.run([(ROW, 0, SEQUENCE[:3])], [2])
    steps.assert_same(logits[0], SEQUENCE[:3], 1e-4)
    assert any(len(shape) == 3 for shape in shapes)


@pytest.mark.parametrize("wanted", [[0, 1], [1, 1]])
def test_padding_changes_nothing(wanted: list[int], tmp_path: Path) -> None:
    path = make_model("llama", tmp_path, seed=1, **TINY)
    parts = [(ROW, 0, [7]), (OTHER_ROW, 0, [9])]
    plain, padded = Steps(path), Steps(path)
    expected = plain.run(parts, wanted)
    torch.testing.assert_close(padded.run(parts, wanted, padding=3)[:2], expected)
    for layer, cache in plain.caches.items():
        torch.testing.assert_close(padded.caches[layer].k, cache.k, equal_nan=True)
        torch.testing.assert_close(padded.caches[layer].v, cache.v, equal_nan=True)
        assert int((~cache.v.isnan()).any(dim=(1, 2)).sum()) == 2  # only the slots of the two tokens


def test_a_step_without_wanted_logits_stores_all_tokens(tmp_path: Path) -> None:
    steps = Steps(make_model("llama", tmp_path, seed=1, **TINY))
    assert steps.run([(ROW, 0, SEQUENCE[:4])], []).shape == (0, 320)
    steps.assert_same(steps.run([(ROW, 4, SEQUENCE[4:5])], [0])[0], SEQUENCE[:5], 1e-4)


class Operations(TorchDispatchMode):
    """Records the names of torch operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_host_reads_nothing_that_the_device_computes(tmp_path: Path) -> None:
    """Otherwise the host would wait, and a CUDA graph could not capture the step. So whatever the values in its
    tensors, its operations are the same."""

    def attend_nothing(*arguments: Any) -> None:
        arguments[-1].zero_()

    steps = Steps(make_model("qwen3", tmp_path, **TINY), attend=attend_nothing)
    noted = []
    for parts, wanted in (
        ([(ROW, 0, [5]), (OTHER_ROW, 0, [9])], [0, 1]),
        ([(0, 3, [1]), (1, 7, [2])], [1, 1]),
    ):
        inputs = steps.inputs(parts, wanted)
        with Operations() as operations:
            steps.decoder.forward(*inputs)
        noted.append(operations.names)
    assert noted[0] == noted[1]
    assert "embedding" in noted[0]
    assert not {"_local_scalar_dense", "nonzero", "masked_select", "unique"} & set(noted[0])


def test_weights_are_taken_over(tmp_path: Path) -> None:
    steps = Steps(make_model("qwen3", tmp_path, **TINY | {"tie_word_embeddings": True}))
    left = sum(parameter.numel() for name, parameter in steps.taken.named_parameters() if "norm" not in name)
    assert left == steps.taken.model.embed_tokens.weight.numel()
    assert steps.decoder._head.weight.data_ptr() == steps.taken.model.embed_tokens.weight.data_ptr()


def load_fused(path: Path, monkeypatch: pytest.MonkeyPatch, fuse: Any) -> CausalLM:
    monkeypatch.setattr(loading, "can_fuse", is_llama_like)
    monkeypatch.setattr(loading, "fuse", fuse)
    return load_model(str(path), device=DEVICE.type, dtype="float32")


def test_the_check_at_load_accepts_it_with_its_own_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fuse(model: Any, layers: Any, max_model_len: int) -> GpuDecoder:
        return GpuDecoder(model, layers, max_model_len)

    path = make_model("qwen3", tmp_path, seed=1, **TINY)
    assert isinstance(load_fused(path, monkeypatch, fuse).fused, GpuDecoder)


def test_if_a_kernel_fails_the_modules_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fuse(model: Any, layers: Any, max_model_len: int) -> GpuDecoder:
        GpuDecoder(model, layers, max_model_len)  # takes the weights
        raise OutOfResources(300_000, 232_448, "shared memory")

    path = make_model("llama", tmp_path, seed=1, **TINY)
    loaded = load_fused(path, monkeypatch, fuse)
    assert loaded.fused is None
    assert loaded.model.lm_head.weight.numel()
