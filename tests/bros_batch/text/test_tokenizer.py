"""Text to token ids, as transformers does it, and chat templates that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from bros_batch.request_error import RequestError
from bros_batch.text.tokenizer import ModelTokenizer
from tests.factories_text import make_text_model


def test_agrees_with_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = make_text_model(tmp_path / "model")
    ours, theirs = ModelTokenizer(directory), AutoTokenizer.from_pretrained(directory)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Größe? 数据 🙂\n\n  <|im_end|> {{ x }}"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "again"},
    ]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(messages) == expected
    assert ours.encode_prompt("Plain 数据 text\n") == theirs("Plain 数据 text\n")["input_ids"]
    assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
    assert ours.eos_token_ids == {theirs.eos_token_id}
    assert ours.max_model_len == 2048


def test_a_model_without_a_chat_template_rejects_chats(tmp_path: Path) -> None:
    directory = make_text_model(tmp_path / "model")
    (directory / "tokenizer_config.json").unlink()
    with pytest.raises(RequestError, match="no chat template"):
        ModelTokenizer(directory).encode_chat([{"role": "user", "content": "hi"}])


def test_the_error_of_a_chat_template_is_reported(tmp_path: Path) -> None:
    directory = make_text_model(tmp_path / "model")
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}x"
    (directory / "chat_template.jinja").write_text(source)
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        ModelTokenizer(directory).encode_chat([{"role": "system", "content": "hi"}])
    assert caught.value.param == "messages"


def test_a_chat_template_cannot_reach_python(tmp_path: Path) -> None:
    directory = make_text_model(tmp_path / "model")
    (directory / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(RequestError):
        ModelTokenizer(directory).encode_chat([{"role": "user", "content": "hi"}])
