"""The tokenizer, the chat template, generation defaults and rotary scaling of a file reach its model directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bros_batch.text.tokenizer import ModelTokenizer
from engine.gguf_files.convert import check_file, text_directory, weights_directory
from engine.gguf_files.place import gguf_file
from engine.gguf_files.rotary import FACTORS
from engine.runner.base import UnsupportedModel
from tests.factories_gguf import make_gguf
from tests.factories_text import CHAT_TEMPLATE, SENTENCES

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def converted(path: Path) -> Path:
    file = gguf_file(str(path))
    assert file is not None
    return text_directory(file)


def generation_config(path: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((converted(path) / "generation_config.json").read_text())
    return written


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(torch.arange(3, 200)[None]).logits
    return result


def test_the_tokenizer_and_the_chat_template_are_those_that_transformers_reads(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    # transformers also looks for these beside the file; they are another model's.
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<other>", "chat_template": "other"}')
    ours = ModelTokenizer(converted(path))
    (tmp_path / "tokenizer_config.json").unlink()
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in (*SENTENCES, "", " ", "<|im_start|> x<|im_end|>", "12 345\n\n\t🙂 e\u0301"):
        ids = theirs(text)["input_ids"]
        assert ours.encode_prompt(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        messages = [{"role": "user", "content": text}]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ours.encode_chat(messages) == expected
    assert ours.max_model_len == 256
    assert ours.vocab_size == 400


@pytest.mark.parametrize("adds", [True, False])
def test_a_prompt_begins_as_the_file_says(adds: bool, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.add_bos_token": adds})
    ids = ModelTokenizer(converted(path)).encode_prompt("hello")
    assert (ids[0] == 1) is adds
    assert ids == AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)("hello")["input_ids"]


def test_a_model_without_a_chat_template_has_none(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", without=("tokenizer.chat_template",))
    assert not (converted(path) / "chat_template.jinja").exists()


def test_generation_defaults_come_from_the_file(tmp_path: Path) -> None:
    path = make_gguf(
        tmp_path / "m.gguf",
        metadata={"general.sampling.temp": 0.5, "general.sampling.top_k": 20, "general.sampling.top_p": 0.25},
    )
    assert generation_config(path) == {
        "bos_token_id": 1,
        "eos_token_id": [2],
        "pad_token_id": None,
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 20,
        "top_p": 0.25,
    }
    recommended = ModelTokenizer(converted(path)).recommended_sampling
    assert recommended == {"temperature": 0.5, "top_k": 20, "top_p": 0.25}


# What the file states, and the tokens that end an answer: 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>.
ENDS: dict[str, tuple[dict[str, int | float | str], list[int]]] = {
    "the end of the text, and a template": ({"tokenizer.ggml.eos_token_id": 0}, [0, 2]),
    "the end of the turn": (
        {
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.ggml.eot_token_id": 1,
            "tokenizer.chat_template": "{{ x }}",
        },
        [0, 1],
    ),
    "the end of the text, and a template without a known end": (
        {"tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": "{{ messages }}"},
        [0],
    ),
}


@pytest.mark.parametrize("stated", ENDS)
def test_every_token_that_ends_an_answer_is_known(stated: str, tmp_path: Path) -> None:
    metadata, expected = ENDS[stated]
    path = make_gguf(tmp_path / "m.gguf", metadata=metadata)
    assert generation_config(path)["eos_token_id"] == expected
    assert ModelTokenizer(converted(path)).eos_token_ids == set(expected)


def llama3_factors(config: Any) -> npt.NDArray[np.float32]:
    """What llama.cpp stores: by how much Llama 3's scaling divides each frequency."""
    plain = 1 / config.rope_parameters["rope_theta"] ** (
        torch.arange(0, config.head_dim, 2) / config.head_dim
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled).float().numpy()


def scaled_gguf(directory: Path, scaling: Mapping[str, Any], **options: Any) -> tuple[Path, Any]:
    """A file of a model with this scaling, and the model as it was before."""
    path = make_gguf(
        directory / "m.gguf",
        quantization="F32",
        rope_parameters=dict(scaling),
        max_position_embeddings=131_072,
        **options,
    )
    return path, AutoModelForCausalLM.from_pretrained(directory / "llama", dtype=torch.float32)


def assert_same_model(path: Path, own: Any) -> None:
    file = gguf_file(str(path))
    assert file is not None
    ours = AutoModelForCausalLM.from_pretrained(weights_directory(file, torch.float32))
    assert torch.equal(logits(ours), logits(own))
    unscaled = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert not torch.allclose(logits(unscaled), logits(own), atol=1e-2), "the scaling changes nothing"


def test_the_scaling_of_llama_3_is_kept(tmp_path: Path) -> None:
    _, own = scaled_gguf(tmp_path, LLAMA3)
    path, own = scaled_gguf(tmp_path, LLAMA3, extra={FACTORS: llama3_factors(own.config)})
    assert_same_model(path, own)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32_768,
        },
    ],
    ids=lambda scaling: str(scaling["rope_type"]),
)
def test_scaling_that_is_stated_is_kept(scaling: dict[str, Any], tmp_path: Path) -> None:
    metadata = {
        "llama.rope.scaling.type": scaling["rope_type"],
        "llama.rope.scaling.factor": scaling["factor"],
    }
    if original := scaling.get("original_max_position_embeddings"):
        metadata["llama.rope.scaling.original_context_length"] = original
    assert_same_model(*scaled_gguf(tmp_path, scaling, metadata=metadata))


UNKNOWN: dict[str, dict[str, Any]] = {
    "longrope": {"metadata": {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}},
    "a table of factors": {"extra": {FACTORS: np.linspace(1, 7, 8, dtype=np.float32)}},
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_scaling_that_transformers_does_not_know_is_refused(kind: str, tmp_path: Path) -> None:
    file = gguf_file(str(make_gguf(tmp_path / "m.gguf", **UNKNOWN[kind])))
    assert file is not None
    with pytest.raises(
        UnsupportedModel, match=rf"scaled in a way \({kind}\) that transformers does not know; use"
    ):
        check_file(file, tmp_path)


def test_the_template_of_the_factory_is_the_one_that_is_read(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    assert (converted(path) / "chat_template.jinja").read_text() == CHAT_TEMPLATE
