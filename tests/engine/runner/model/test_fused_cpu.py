"""Which models run on fused kernels on a CPU, that they compute the same there, and what happens if they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.runner.model import loading
from engine.runner.model.loading import load_model
from tests.engine.kernels.cpu.multipliers import NAMES, multiplier_or_skip
from tests.engine.runner.driver import Driver, load_runner
from tests.factories_models import make_model

pytest.importorskip("numba")

from engine.kernels.cpu import multiply_bf16
from engine.runner.model import fused_cpu

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
ODD = {
    "hidden_size": 72,
    "intermediate_size": 100,
    "vocab_size": 330,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
PROMPT = [5, 9, 200, 31, 77, 8, 8, 120, 45, 6, 19]


def greedy(path: Path, num_tokens: int = 12, **settings: Any) -> list[int]:
    driver = Driver(load_runner(path, **settings))
    sequence = driver.add(PROMPT)
    driver.run(num_tokens)
    return sequence.output[:num_tokens]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_like_models_are_fused(family: str, dtype: str, tmp_path: Path) -> None:
    assert load_model(str(make_model(family, tmp_path)), device="cpu", dtype=dtype).fused is not None


@pytest.mark.parametrize("family", ["gemma", "phi", "gpt2", "mixtral"])
def test_other_models_are_not_fused(family: str, tmp_path: Path) -> None:
    assert load_model(str(make_model(family, tmp_path)), device="cpu").fused is None


@pytest.mark.parametrize("overrides", [ODD, {"tie_word_embeddings": True}])
def test_sizes_that_are_not_multiples_of_a_panel(
    overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_model("llama", tmp_path, seed=1, **overrides)
    assert load_model(str(path), device="cpu").fused is not None
    outputs = greedy(path)
    monkeypatch.setattr(loading, "can_fuse", lambda *_: False)
    assert greedy(path) == outputs


@pytest.mark.parametrize(
    "overrides",
    [{"hidden_act": "gelu"}, {"attention_bias": True}, {"mlp_bias": True}],
    ids=lambda o: next(iter(o)),
)
def test_models_with_options_that_the_kernels_lack_are_not_fused(
    overrides: dict[str, Any], tmp_path: Path
) -> None:
    assert load_model(str(make_model("llama", tmp_path, **overrides)), device="cpu").fused is None


def test_a_model_whose_fused_decoder_is_wrong_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_model("llama", tmp_path, seed=1)
    expected = greedy(path)

    class Wrong(fused_cpu.CpuDecoder):
        def forward(self, *arguments: Any) -> torch.Tensor:
            return super().forward(*arguments).flip(-1)

    monkeypatch.setattr(fused_cpu, "CpuDecoder", Wrong)
    assert load_model(str(path), device="cpu").fused is None
    assert greedy(path) == expected


@pytest.mark.parametrize("name", NAMES)
def test_fused_bfloat16(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading compares the decoder with the modules, and would not keep it if it differed."""
    multiplier = multiplier_or_skip(name)
    monkeypatch.setattr(multiply_bf16, "multiplier", lambda: multiplier)
    path = make_model("qwen2", tmp_path, seed=1, hidden_size=64, intermediate_size=96)
    loaded = load_model(str(path), device="cpu", dtype="bfloat16")
    assert loaded.fused is not None
    assert loaded.fused._is_bf16
    assert len(greedy(path, dtype="bfloat16")) == 12
