"""The `tokenizers` object of a model directory, set up as transformers' AutoTokenizer does.

Part of the setup is not in `tokenizer.json` but in `tokenizer_config.json`, and part of what `tokenizer.json` holds is
not for prompts: the padding and truncation with which the tokenizer was used last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer


def read_tokenizer(directory: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Read the tokenizer of a model, whose `tokenizer_config.json` holds `config`."""
    path = directory / "tokenizer.json"
    if not path.exists():
        # Older models have other files, which only transformers can convert; importing it takes seconds.
        from transformers import AutoTokenizer

        return _without_limits(AutoTokenizer.from_pretrained(str(directory)).backend_tokenizer)
    tokenizer = _without_limits(Tokenizer.from_file(str(path)))
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in _tokens_of(config):
        if token.content not in known:
            known.add(token.content)
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    tokenizer.encode_special_tokens = config.get("split_special_tokens") is True
    return tokenizer


def _without_limits(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _tokens_of(config: Mapping[str, Any]) -> Iterator[AddedToken]:
    """Yield the tokens that `tokenizer_config.json` adds: those with an id, in the order of their ids, and special
    tokens that are only named."""
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        for token_id in sorted((key for key in listed if str(key).isdecimal()), key=int):
            if isinstance(listed[token_id], dict) and isinstance(listed[token_id].get("content"), str):
                yield _added_token(listed[token_id], is_special=bool(listed[token_id].get("special")))
    values: list[object] = [value for key, value in config.items() if key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = config.get(key)
        values += more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()
    for value in values:
        if _content(value):
            yield _added_token(value, is_special=True)


def _added_token(value: object, *, is_special: bool) -> AddedToken:
    options = value if isinstance(value, dict) else {}
    flags = {name: options.get(name) is True for name in ("lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(_content(value) or "", special=is_special, **flags)


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that have a name, such as `bos_token`."""
    contents = ((key, _content(value)) for key, value in config.items() if key.endswith("_token"))
    return {key: content for key, content in contents if content is not None}


def _content(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if there is no such file."""
    if not path.exists():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
