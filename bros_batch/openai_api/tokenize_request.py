"""Bodies of `/tokenize` and `/detokenize`, as vLLM defines them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import msgspec

from bros_batch.openai_api.chat_request import ChatCompletionRequest
from bros_batch.openai_api.prompts import encode_prompts
from bros_batch.openai_api.request_fields import Ignored, TokenId, Unsupported
from bros_batch.openai_api.validation import LenientPart, validate
from bros_batch.request_error import RequestError
from bros_batch.text.tokenizer import ModelTokenizer

# Fields of a chat that its prompt depends on. They mean the same here as there.
CHAT_FIELDS = (
    "messages", "tools", "tool_choice", "documents", "chat_template_kwargs", "reasoning_effort", "verbosity",
    "add_generation_prompt", "continue_final_message", "add_special_tokens",
)  # fmt: skip


class TokenizePrompt(LenientPart):
    """Body of `POST /tokenize` with a plain prompt."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @property
    def num_chars(self) -> int:
        return len(self.prompt)

    def token_ids(self, tokenizer: ModelTokenizer) -> list[int]:
        return tokenizer.encode_prompt(self.prompt, add_special_tokens=self.add_special_tokens is not False)


class TokenizeChat(LenientPart):
    """Body of `POST /tokenize` with the messages of a chat; the fields that a chat has mean the same here."""

    model: str | None = None
    messages: Any
    tools: Any = None
    tool_choice: Any = None
    documents: Any = None
    chat_template_kwargs: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    add_generation_prompt: Any = None
    continue_final_message: Any = None
    add_special_tokens: Any = None
    return_token_strs: bool | None = None
    chat_template: Unsupported = None
    mm_processor_kwargs: Ignored = None

    @cached_property
    def chat(self) -> ChatCompletionRequest:
        """The chat request with the same prompt. Raises RequestError."""
        fields = {name: value for name in CHAT_FIELDS if (value := getattr(self, name)) is not None}
        return validate(ChatCompletionRequest, msgspec.json.encode({**fields, "model": "-"}))

    @property
    def num_chars(self) -> int:
        return self.chat.num_prompt_chars

    def token_ids(self, tokenizer: ModelTokenizer) -> list[int]:
        return encode_prompts(tokenizer, self.chat)[0]


class DetokenizeRequest(LenientPart):
    """Body of `POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId]


def parse_tokenize(raw: bytes) -> TokenizePrompt | TokenizeChat:
    """Parse the JSON of a body of `/tokenize`. Raises RequestError, which names the first invalid field."""
    names = _names_in(raw)
    if "messages" in names and "prompt" in names:
        raise RequestError("Send either 'prompt' or 'messages', not both.", "prompt")
    if "messages" in names:
        request = validate(TokenizeChat, raw)
        _ = request.chat  # raises an error if there is something wrong with it
        return request
    return validate(TokenizePrompt, raw)


def _names_in(raw: bytes) -> set[str]:
    try:
        return set(msgspec.json.decode(raw, type=dict[str, msgspec.Raw]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return set()  # validation says what is wrong
