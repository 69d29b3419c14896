"""Whatever a model's tokenizer files hold: prompts and texts are those of AutoTokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bros_batch.text.tokenizer import ModelTokenizer
from tests.factories_text import CHAT_TEMPLATE, make_sentencepiece_model, make_text_model

TEXTS = (
    "The quick brown fox jumps over the lazy dog. the dog <tool> <img> <extra> x <new> the total is 12.50 EUR, due",
    " hello , do n't . he a b",
    "  a  b\n\n",
    "\u00e9\U0001f642",
    "",
)
BEGIN = {"byte-level": "<|endoftext|>", "sentencepiece": "<s>"}
END = {"byte-level": "<|im_end|>", "sentencepiece": "</s>"}


def begin_template(begin: str) -> dict[str, Any]:
    token = {"id": begin, "ids": [0 if begin == "<|endoftext|>" else 1], "tokens": [begin]}
    parts = [{"SpecialToken": {"id": begin, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*parts, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": parts, "pair": pair, "special_tokens": {begin: token}}


def added(content: str, *, special: bool) -> dict[str, Any]:
    flags = {"lstrip": special, "rstrip": special, "normalized": not special, "single_word": False}
    return {"500": {"content": content, "special": special, **flags}}


# What the two files hold besides what every model has: tokenizer.json, tokenizer_config.json.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing more": ({}, {}),
    "truncation": (
        {"truncation": {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}},
        {},
    ),
    "padding": (
        {
            "padding": {
                "strategy": {"Fixed": 64},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "BEGIN",
            }
        },
        {},
    ),
    "a template that begins": ({"post_processor": "TEMPLATE"}, {}),
    "add_bos_token": ({}, {"add_bos_token": True, "bos_token": "BEGIN"}),
    "add_eos_token": ({}, {"add_bos_token": True, "add_eos_token": True, "bos_token": "BEGIN"}),
    "add_bos_token without one": ({}, {"add_bos_token": True}),
    "add_bos_token off": ({"post_processor": "TEMPLATE"}, {"add_bos_token": False}),
    "a special token of the vocabulary": ({}, {"bos_token": "he"}),
    "a special token of its own": ({}, {"bos_token": "<new>"}),
    "additional special tokens": ({}, {"additional_special_tokens": ["<tool>", " a"]}),
    "named extra tokens": ({}, {"extra_special_tokens": {"image_token": "<img>"}}),
    "extra tokens": ({}, {"extra_special_tokens": ["<img>"]}),
    "an added special token": ({}, {"added_tokens_decoder": added("<extra>", special=True)}),
    "an added word": ({}, {"added_tokens_decoder": added("dog", special=False)}),
    "special tokens are split": ({}, {"split_special_tokens": True}),
    "spaces are not cleaned up": ({}, {"clean_up_tokenization_spaces": True}),
    "add_prefix_space": ({}, {"add_prefix_space": True}),
    "no class": ({}, {"tokenizer_class": None}),
    "a described token": ({}, {"eos_token": {"__type": "AddedToken", "content": "END", "lstrip": True}}),
}


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_auto_tokenizer(tmp_path: Path, kind: str, variant: str) -> None:
    from transformers import AutoTokenizer

    make: Callable[[Path], Path] = make_text_model if kind == "byte-level" else make_sentencepiece_model
    directory = make(tmp_path / "model")
    names = {"BEGIN": BEGIN[kind], "END": END[kind]}
    for name, more in zip(("tokenizer.json", "tokenizer_config.json"), VARIANTS[variant], strict=True):
        for word, token in names.items():
            more = json.loads(json.dumps(more).replace(f'"{word}"', json.dumps(token)))
        if more.get("post_processor") == "TEMPLATE":
            more["post_processor"] = begin_template(BEGIN[kind])
        content = {**json.loads((directory / name).read_text()), **more}
        (directory / name).write_text(
            json.dumps({k: v for k, v in content.items() if v is not None or k != "tokenizer_class"})
        )
    ours, theirs = ModelTokenizer(directory), AutoTokenizer.from_pretrained(directory)
    for text in (*TEXTS, f"a {BEGIN[kind]} b {END[kind]} he"):
        ids = theirs(text)["input_ids"]
        assert ours.encode_prompt(text) == ids
        stream = ours.stream()
        decoded = theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == stream.push(ids) + stream.finish() == decoded
        messages = [{"role": "user", "content": text}]
        chat = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ours.encode_chat(messages) == chat
    assert theirs.eos_token_id in ours.eos_token_ids


def test_a_template_file_precedes_the_template_of_the_configuration(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = make_text_model(tmp_path / "model")
    (directory / "chat_template.jinja").write_text("{{ bos_token }}Now: " + CHAT_TEMPLATE)
    more = {"bos_token": {"__type": "AddedToken", "content": "<|endoftext|>"}}
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, **more}))
    messages = [{"role": "user", "content": "hello"}]
    theirs = AutoTokenizer.from_pretrained(directory)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ModelTokenizer(directory).encode_chat(messages) == expected
    assert expected[0] == 0
