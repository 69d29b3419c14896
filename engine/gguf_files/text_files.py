"""What a conversion holds besides the weights: configuration, tokenizer, chat template and generation defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from engine.gguf_files.header import GgufHeader
from engine.gguf_files.metadata_copy import write_metadata_copy
from engine.gguf_files.rotary import set_rotary_scaling
from engine.runner.base import UnsupportedModel
from engine.runner.model.checkpoint import check_config, first_line

# Reading a damaged or unusual file raises any of these in transformers.
_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    NotImplementedError,
    ImportError,
)

# By the name in the metadata: the name in generation_config.json.
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
_END_IDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
# Tokens that end an answer where the model's chat template has them. Files name a single end token, and some the one
# that ends a text.
_END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|end_of_turn|>",
)


def write_text_files(header: GgufHeader, directory: Path, sampling: Mapping[str, float]) -> None:
    """Writes everything except the weights; `sampling` counts if the file has no defaults. Raises UnsupportedModel."""
    config = read_config(header, directory)
    tokenizer = _read_tokenizer(header, directory)
    config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    generation = _generation_config(header, config, tokenizer, sampling)
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def read_config(header: GgufHeader, scratch: Path) -> PretrainedConfig:
    """The configuration of the file's model. Needs a directory for a temporary file. Raises UnsupportedModel."""
    copy = scratch / "metadata.gguf"
    write_metadata_copy(header, copy)
    try:
        config: Any = AutoConfig.from_pretrained(scratch, gguf_file=copy.name)
    except _ERRORS as error:
        raise UnsupportedModel(
            f"{header.path} cannot be converted: {first_line(error)} (its architecture is {header.architecture}; "
            "transformers reads GGUF files of Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi 3 and some others; use "
            "the model's directory with safetensors weights)"
        ) from error
    finally:
        copy.unlink()
    check_config(str(header.path), config)
    config.vocab_size = header.vocab_size
    config.dtype = _own_dtype(header)
    set_rotary_scaling(header, config)
    return config  # type: ignore[no-any-return]


def _own_dtype(header: GgufHeader) -> torch.dtype:
    """The data type that the file's weights have, or that they most likely had before they were quantized."""
    kinds = {GGMLQuantizationType(tensor.type_id) for tensor in header.tensors.values()}
    if kinds <= {GGMLQuantizationType.F32}:
        return torch.float32
    plain = {GGMLQuantizationType.F32, GGMLQuantizationType.F16}
    return torch.float16 if kinds <= plain else torch.bfloat16


def _read_tokenizer(header: GgufHeader, scratch: Path) -> Any:
    # In a directory of its own, because transformers also reads what else lies beside the file.
    link = scratch / "linked.gguf"
    link.symlink_to(header.path)
    try:
        return AutoTokenizer.from_pretrained(scratch, gguf_file=link.name)
    except _ERRORS as error:
        raise UnsupportedModel(
            f"{header.path} cannot be converted, because transformers cannot read its tokenizer "
            f"({header.metadata.get('tokenizer.ggml.model')}): {first_line(error)}; use the model's directory with "
            "safetensors weights"
        ) from error
    finally:
        link.unlink()


def _generation_config(
    header: GgufHeader, config: PretrainedConfig, tokenizer: Any, sampling: Mapping[str, float]
) -> dict[str, Any]:
    ends = [header.metadata[key] for key in _END_IDS if key in header.metadata]
    template = tokenizer.chat_template or ""
    known = tokenizer.get_vocab()
    ends += [known[name] for name in _END_OF_TURN if name in known and name in template]
    sampling = {
        name: header.metadata[key] for key, name in _SAMPLING.items() if key in header.metadata
    } or sampling
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(dict.fromkeys(ends)) or None,
        "pad_token_id": config.pad_token_id,
        **({"do_sample": True} if sampling else {}),
        **sampling,
    }
