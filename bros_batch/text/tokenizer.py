"""Text to tokens: a model's tokeniser and chat template, and the templates that turn documents into prompts.

This reads the files that every model of transformers has, with the library that transformers itself uses, so
it does without torch: a web or worker process starts in a fraction of a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from bros_batch.openai_api.completion_requests import ChatCompletionRequest, Message, Request, RequestError
from bros_batch.text.chat_template import compile_chat_template
from bros_batch.text.detokenize import ByteStream, TextStream, WindowStream

TOKENIZER_FILES = ("*.json", "*.jinja", "*.model")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
PLACE = re.compile(r"\{\{|\}\}|\{\s*(\w[\w .\-]*?)\s*\}")


class ModelText:
    """The text side of one model. Safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        config = _read_json(directory / "config.json")
        generation = _read_json(directory / "generation_config.json")
        names = _read_json(directory / "special_tokens_map.json") | _read_json(
            directory / "tokenizer_config.json"
        )
        self._tokenizer = _load_tokenizer(directory)
        self._is_byte_level = "ByteLevel" in repr(self._tokenizer.decoder)
        self._special_tokens = {
            key: content
            for key, value in names.items()
            if key.endswith("_token") and (content := _token_content(value)) is not None
        }
        source = _chat_template_source(directory, names)
        self._chat_template = None if source is None else compile_chat_template(source)
        self.max_model_len = _max_model_len(config)
        self.eos_token_ids = self._end_tokens(config, generation)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added = {token_id: token.content for token_id, token in added.items()}
        self.bytes_of = lru_cache(maxsize=65536)(self._bytes_of)

    def encode_chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a chat up to where the assistant's answer begins."""
        if self._chat_template is None:
            raise RequestError(
                "This model has no chat template; use /v1/completions with a prompt instead.", "messages"
            )
        turns = [turn.as_template_input() if isinstance(turn, Message) else dict(turn) for turn in messages]
        names = {**self._special_tokens, **(template_kwargs or {})}
        names |= {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            text = self._chat_template.render(names)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
            LookupError,
        ) as error:
            raise RequestError(
                f"The model's chat template refuses these messages: {error}.", "messages"
            ) from None
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, prompt: str | list[int]) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the model expects at its beginning."""
        return list(self._tokenizer.encode(prompt).ids) if isinstance(prompt, str) else prompt

    def encode_request(self, request: Request) -> list[list[int]]:
        """Token ids of each prompt of `request`: one for a chat, one or more for a completion."""
        if isinstance(request, ChatCompletionRequest):
            return [self.encode_chat(request.messages, request.chat_template_kwargs)]
        prompt = request.prompt
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)
        return [self.encode_prompt(each) for each in (prompt if several else [prompt])]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an output; special tokens leave none."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def stream(self) -> TextStream:
        """A fresh incremental decoder: what it gives, joined, is `decode` of all its tokens."""
        return ByteStream(self._shown_bytes_of) if self._is_byte_level else WindowStream(self.decode)

    def _shown_bytes_of(self, token_id: int) -> bytes:
        return b"" if token_id in self._special_ids else self.bytes_of(token_id)

    def _bytes_of(self, token_id: int) -> bytes:
        """The bytes that one token stands for; those of its name for a special token."""
        if (content := self._added.get(token_id)) is not None:
            return content.encode()
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            try:
                return bytes(map(BYTES_OF_CHARACTERS.__getitem__, token))
            except KeyError:
                return bytes(token.encode())
        if (match := BYTE_TOKEN.fullmatch(token)) is not None:
            return bytes.fromhex(match[1])
        return bytes(token.replace("\u2581", " ").encode())

    def _end_tokens(self, config: Mapping[str, Any], generation: Mapping[str, Any]) -> frozenset[int]:
        ids: set[int] = set()
        for source in (config, generation):
            value = source.get("eos_token_id")
            ids.update(value if isinstance(value, list) else () if value is None else (value,))
        if (name := self._special_tokens.get("eos_token")) is not None:
            token_id = self._tokenizer.token_to_id(name)
            ids.update(() if token_id is None else (token_id,))
        return frozenset(ids)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, others are moved beyond U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES_OF_CHARACTERS = _byte_level_alphabet()


@lru_cache(maxsize=8)
def load(model: str) -> ModelText:
    """The text side of `model`, a directory or a name on the Hugging Face hub. Loaded once a process."""
    directory = Path(model).expanduser()
    if not directory.is_dir():
        if directory.is_absolute():
            raise FileNotFoundError(f"There is no model directory {directory}.")
        from huggingface_hub import snapshot_download

        directory = Path(snapshot_download(model, allow_patterns=list(TOKENIZER_FILES)))
    return ModelText(directory)


def _load_tokenizer(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    # Older models have only what transformers converts, at the price of importing it.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(directory)).backend_tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _token_content(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _chat_template_source(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    source = _read_json(directory / "chat_template.json").get(
        "chat_template", tokenizer_config.get("chat_template")
    )
    if isinstance(source, list):
        named: Iterable[Mapping[str, str]] = source
        return next((each["template"] for each in named if each["name"] == "default"), None)
    return source if isinstance(source, str) else None


def _max_model_len(config: Mapping[str, Any]) -> int:
    """Positions the model was made for; a model that names none is bounded by the engine alone."""
    for source in (config, config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
            if isinstance(value := source.get(name), int):
                return value
    return 2**31 - 1


def template_fields(template: str) -> list[str]:
    """The document fields that `template` asks for, in order, each once."""
    return list(dict.fromkeys(match[1] for match in PLACE.finditer(template) if match[1] is not None))


def render_template(template: str, document: Mapping[str, Any], line: int) -> str:
    """`template` with the document's fields in place of each `{field}`: text as it is, null as nothing, all
    else as JSON. `{{` and `}}` stand for braces; braces around anything but a name are left alone."""

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name not in document:
            fields = ", ".join(map(str, list(document)[:20])) or "none"
            raise RequestError(
                f"Line {line}: the prompt needs the field '{name}', which is missing (there are: {fields}).",
                name,
            )
        value = document[name]
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return PLACE.sub(value_of, template)
