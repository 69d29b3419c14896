"""GGUF files of tiny models, written with the `gguf` package in the layout that llama.cpp's converter gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from transformers import AutoModelForCausalLM

from tests.factories_models import make_model
from tests.factories_text import CHAT_TEMPLATE, make_text_model

VOCAB_SIZE = 400
CONTROL, NORMAL = 3, 1  # kinds of tokens
# By transformers' model type.
_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}


def make_gguf(
    path: Path,
    family: str = "llama",
    *,
    quantization: str = "Q8_0",
    metadata: dict[str, int | float | str] | None = None,
    seed: int = 0,
    without: tuple[str, ...] = (),
    extra: dict[str, npt.NDArray[np.float32]] | None = None,
    **config: Any,
) -> Path:
    """Writes a model of `family` with random weights, and returns its path.

    `metadata` adds entries or changes them, `without` leaves out the entries and tensors of these names, and `extra`
    adds tensors. `config` changes the model's configuration. The model itself is in the directory `FAMILY` beside it.
    """
    model_dir = make_model(family, path.parent, seed=seed, vocab_size=VOCAB_SIZE, **config)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_ARCHITECTURES[family]])
    entries = {**_model_metadata(model.config), **_tokenizer_metadata(path.parent), **(metadata or {})}
    for key, value in entries.items():
        full = key.replace("{arch}", writer.arch)
        if full not in without:
            _add(writer, full, value)
    kind = gguf.GGMLQuantizationType[quantization]
    for name, values in [*_tensors(family, model), *(extra or {}).items()]:
        if name in without:
            continue
        if values.ndim > 1 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _model_metadata(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    return {
        "general.name": "tiny",
        "{arch}.context_length": config.max_position_embeddings,
        "{arch}.block_count": config.num_hidden_layers,
        "{arch}.embedding_length": config.hidden_size,
        "{arch}.feed_forward_length": config.intermediate_size,
        "{arch}.attention.head_count": config.num_attention_heads,
        "{arch}.attention.head_count_kv": config.num_key_value_heads,
        "{arch}.attention.key_length": config.head_dim,
        "{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "{arch}.rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
        "{arch}.rope.dimension_count": config.head_dim,
        **({"{arch}.attention.sliding_window": config.sliding_window} if _has_window(config) else {}),
        **(
            {
                "{arch}.expert_count": config.num_experts,
                "{arch}.expert_used_count": config.num_experts_per_tok,
            }
            if hasattr(config, "num_experts")
            else {}
        ),
    }


def _has_window(config: Any) -> bool:
    return getattr(config, "sliding_window", None) is not None


def _tokenizer_metadata(directory: Path) -> dict[str, Any]:
    text = make_text_model(directory / "text", vocab_size=VOCAB_SIZE)
    tokenizer = json.loads((text / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"<unused{i}>" for i in range(VOCAB_SIZE - len(tokens))]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in special else NORMAL for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _tensors(family: str, model: Any) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The model's tensors by llama.cpp's names, and as llama.cpp arranges their values."""
    names = gguf.get_tensor_name_map(_ARCHITECTURES[family], model.config.num_hidden_layers)
    tied = model.config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if tied and name == "lm_head.weight":
            continue
        if name.endswith("experts.gate_up_proj"):
            layer = name.split(".")[2]
            gate, up = np.split(values, 2, axis=1)
            yield f"blk.{layer}.ffn_gate_exps.weight", np.ascontiguousarray(gate)
            yield f"blk.{layer}.ffn_up_exps.weight", np.ascontiguousarray(up)
            continue
        stem, _, suffix = name.rpartition(".")
        if name.endswith("experts.down_proj"):
            stem, suffix = name, "weight"
        if name.endswith("shared_expert_gate.weight"):
            values = values[0]
        if family == "llama" and stem.endswith(("q_proj", "k_proj")):
            values = _interleaved(values, model.config.head_dim)
        if family == "gemma3_text" and stem.endswith("norm"):
            values = values + 1
        found = names.get_name(stem)
        assert found is not None, name
        yield f"{found}.{suffix}", values


def _interleaved(values: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Rows of one head in the order of llama.cpp, which rotates neighbors instead of halves."""
    rows, columns = values.shape
    halves = values.reshape(rows // head_dim, 2, head_dim // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
