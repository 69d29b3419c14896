"""The tokenizer of a model, with its chat template.

It reads the files that come with every transformers model, through the same `tokenizers` library, and does not import
torch or transformers: a web or worker process starts in a fraction of a second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from bros_batch.request_error import RequestError
from bros_batch.text.chat_renderer import ChatRenderer
from bros_batch.text.chat_template import AS_A_QUESTION, RenderOptions, cut_after_last_message
from bros_batch.text.detokenize import ByteStream, TextStream, WindowStream
from bros_batch.text.embedding_form import own_embedding_form
from bros_batch.text.generation_config import recommended_sampling
from bros_batch.text.model_directory import model_directory
from bros_batch.text.reasoning import REASONING_MARKS, ReasoningName, marks_of_template
from bros_batch.text.tokenizer_file import named_tokens, read_json, read_tokenizer
from bros_batch.text.tool_calls.formats import CALL_FORMATS, FormatName, format_of_template

# A text is tokenized in one thread. Each process works on one text at a time, or has a thread per text.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class ModelTokenizer:
    """Converts chats and prompts to the token ids of one model, and token ids back to text. Thread-safe."""

    def __init__(
        self,
        directory: Path,
        tool_call_parser: FormatName | Literal["auto"] = "auto",
        reasoning_parser: ReasoningName | Literal["auto", "none"] = "auto",
    ) -> None:
        config = read_json(directory / "config.json")
        generation = read_json(directory / "generation_config.json")
        names = read_json(directory / "special_tokens_map.json") | read_json(
            directory / "tokenizer_config.json"
        )
        self._special_tokens = named_tokens(names)
        self._tokenizer = read_tokenizer(directory, names)
        self._is_byte_level = "ByteLevel" in repr(self._tokenizer.decoder)
        self.renderer = ChatRenderer(directory, names, self._special_tokens)
        self.call_format = (
            format_of_template(self.renderer.tool_source)
            if tool_call_parser == "auto"
            else CALL_FORMATS[tool_call_parser]
        )
        self.reasoning_marks = (
            marks_of_template(self.renderer.source)
            if reasoning_parser == "auto"
            else None
            if reasoning_parser == "none"
            else REASONING_MARKS[reasoning_parser]
        )
        self.recommended_sampling = recommended_sampling(generation)
        self.max_model_len = _max_model_len(config)
        self.vocab_size = _vocab_size(config)
        self.hidden_size = _hidden_size(config)
        self.embedding_form = own_embedding_form(directory)
        self.eos_token_ids = self._end_tokens(config, generation)
        # In characters or, for a tokenizer of bytes, in bytes, which are at least as many.
        self.longest_token_chars = max(map(len, self._tokenizer.get_vocab()))
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._ids_of_added = {content: token_id for token_id, content in self._added.items()}
        self.bytes_of = lru_cache(maxsize=65536)(self._bytes_of)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: RenderOptions = AS_A_QUESTION,
    ) -> list[int]:
        """Return the token ids of a chat, up to the point where the assistant's answer begins.

        Raises RequestError if there are tools or documents and the chat template does not show them to the model.
        """
        if tools and not self.renderer.supports_tools:
            raise RequestError(
                "This model's chat template does not support tools. Serve a model that was trained to call them, or "
                "leave out 'tools'; 'response_format' with a JSON schema works with every model.",
                "tools",
            )
        text = self.renderer.render(messages, template_kwargs, tools or None, options)
        if options.continues_last_message:
            text = cut_after_last_message(text, messages)
        return self._encode(text, "messages", add_special_tokens=options.add_special_tokens)

    def chat_text(
        self, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any] | None = None
    ) -> str:
        """Return the text that `encode_chat` tokenizes."""
        return self.renderer.render(messages, template_kwargs, None)

    def encode_part(self, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a part of a chat's text, and the index of the first character of each."""
        self._check_length(text, "messages")
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return list(encoding.ids), [start for start, _ in encoding.offsets]

    def ids_of_part(self, text: str) -> list[int]:
        """Return the token ids of a part of a chat's text."""
        return self._encode(text, "messages", add_special_tokens=False)

    def encode_prompt(self, prompt: str | list[int], *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a plain prompt. Text gets the special tokens that the model expects at its start,
        unless they are not wanted."""
        if not isinstance(prompt, str):
            return prompt
        return self._encode(prompt, "prompt", add_special_tokens=add_special_tokens)

    def _encode(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        """Tokenize `text`, unless it is too long for the model even if each of its tokens were the longest one.

        Tokenizing takes fifty times the memory of the text.
        """
        self._check_length(text, param)
        # Of a batch, because only this form does without the place of each token in the text, which takes a quarter of
        # the time.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def _check_length(self, text: str, param: str) -> None:
        most = self.max_model_len
        if len(text) > most * self.longest_token_chars:
            raise RequestError(
                f"This model's maximum context length is {most} tokens, and the prompt has {len(text)} characters, "
                "which are more tokens than that. Shorten the prompt.",
                param,
                "context_length_exceeded",
            )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of an output, without special tokens."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def decode_all(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens included."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))

    def names_of(self, token_ids: Iterable[int]) -> list[str]:
        """Return the names of tokens in the vocabulary, which are not always their text; "" for unused ids."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    def stream(self, prompt_tail: Sequence[int] = (), shown: Set[int] = frozenset()) -> TextStream:
        """Return a new incremental decoder of an output. Its results, joined, are what the output's tokens add to the
        `decode` of the prompt, whose last tokens are `prompt_tail`. Special tokens have no text unless they are
        `shown`."""
        hidden = self._special_ids - shown if shown else self._special_ids
        if self._is_byte_level:
            return ByteStream(self.bytes_of, prompt_tail, hidden)
        return WindowStream(self.decode_all if shown else self.decode, prompt_tail, hidden)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of the special tokens."""
        return self._special_ids

    def special_ids_of(self, names: Iterable[str]) -> frozenset[int]:
        """Return the ids of those special tokens whose name is one of `names`."""
        wanted = set(names)
        return frozenset(token_id for token_id in self._special_ids if self._added[token_id] in wanted)

    def added_token_id(self, name: str) -> int | None:
        """Return the id of the token, special or not, that was added to the vocabulary as `name`."""
        return self._ids_of_added.get(name)

    def _bytes_of(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; for a special token, the bytes of its name."""
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
    """Return GPT-2's characters for bytes: printable bytes map to themselves, others to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES_OF_CHARACTERS = _byte_level_alphabet()


@lru_cache(maxsize=8)
def load_tokenizer(
    model: str,
    tool_call_parser: FormatName | Literal["auto"] = "auto",
    reasoning_parser: ReasoningName | Literal["auto", "none"] = "auto",
) -> ModelTokenizer:
    """Load the tokenizer of a model, once per process."""
    return ModelTokenizer(model_directory(model), tool_call_parser, reasoning_parser)


def _vocab_size(config: Mapping[str, Any]) -> int:
    """Return the number of logits of the model. Without one in its config, only the engine sets a limit."""
    value = (config.get("text_config") or config).get("vocab_size", config.get("vocab_size"))
    return value if isinstance(value, int) else 2**31 - 1


def _hidden_size(config: Mapping[str, Any]) -> int | None:
    """Return the length of the model's hidden states, and so of its embeddings, if its config says so."""
    value = (config.get("text_config") or config).get("hidden_size", config.get("hidden_size"))
    return value if isinstance(value, int) else None


def _max_model_len(config: Mapping[str, Any]) -> int:
    """Return the number of positions the model supports. Without one in its config, only the engine sets a limit."""
    for source in (config, config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
            if isinstance(value := source.get(name), int):
                return value
    return 2**31 - 1
