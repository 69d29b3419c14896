"""Loading an unsupported model raises an error of one sentence, which names it and says why and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from engine.runner.base import UnsupportedModel
from engine.runner.model.loading import load_model
from tests.factories_models import make_model


def save(path: Path, config: Any, auto_class: Any = AutoModelForCausalLM) -> Path:
    auto_class.from_config(config).save_pretrained(path)
    return path


def small(model_type: str, **fields: Any) -> Any:
    return AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": 100,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            **fields,
        },
    )


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "t5": ({"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}, "encoder-decoder model"),
    "mamba": ({"state_size": 4}, "recurrent state"),
    "bloom": ({"n_head": 4}, "its attention cannot be replaced"),
    "bert": ({}, "later tokens"),
    "vit": ({}, "no causal language model of this architecture"),
    "qwen3_next": (
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
        "linear_attention",
    ),
    "llama4_text": (
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 64,
            "num_local_experts": 2,
            "pad_token_id": 0,
        },
        "neither full nor a sliding window",
    ),
}


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_unsupported_architectures(model_type: str, tmp_path: Path) -> None:
    fields, reason = UNSUPPORTED[model_type]
    auto_class = AutoModel if model_type in ("t5", "vit") else AutoModelForCausalLM
    path = save(tmp_path / model_type, small(model_type, **fields), auto_class)
    with pytest.raises(UnsupportedModel) as raised:
        load_model(str(path), device="cpu")
    message = str(raised.value)
    assert message.startswith(f"{path} ({model_type}) cannot be served: ")
    assert reason in message
    assert "use a decoder-only transformer" in message
    assert "\n" not in message


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="cannot be loaded"):
        load_model(str(tmp_path), device="cpu")
    with pytest.raises(UnsupportedModel, match=r"there is no directory .*/missing"):
        load_model(str(tmp_path / "missing"), device="cpu")


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    path = make_model("llama", tmp_path)
    weights = path / "model.safetensors"
    torch.save(load_file(weights), path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UnsupportedModel, match="safetensors"):
        load_model(str(path), device="cpu")


def test_an_incomplete_checkpoint(tmp_path: Path) -> None:
    path = make_model("llama", tmp_path)
    weights = path / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        UnsupportedModel, match=r"lacks 1 of the model's tensors, such as model\.layers\.1\.mlp\.up_proj"
    ):
        load_model(str(path), device="cpu")


def test_a_model_that_differs_through_our_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at load finds a model whose layers depend on the token before, which is not in KV memory."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward

    def shifted(self: Any, x: torch.Tensor) -> torch.Tensor:
        return forward(self, x + torch.roll(x, 1, dims=1))

    path = make_model("llama", tmp_path)
    monkeypatch.setattr(LlamaMLP, "forward", shifted)
    with pytest.raises(UnsupportedModel, match="its logits differ from its own by"):
        load_model(str(path), device="cpu")


def test_cuda_without_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UnsupportedModel, match="torch sees no GPU"):
        load_model(str(make_model("llama", tmp_path)), device="cuda")
