"""Token ids of a request's prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Raw

from bros_batch.openai_api.chat_request import ChatCompletionRequest
from bros_batch.openai_api.completion_request import CompletionRequest, Request
from bros_batch.openai_api.message import template_messages
from bros_batch.text.tokenizer import ModelTokenizer
from bros_batch.text.tool_calls.formats import MISTRAL

# The token ids of a body's only prompt, given the JSON of its fields; None if it has a prompt of another form.
PromptEncoder = Callable[[Mapping[str, Raw]], list[int] | None]


class PlainMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A message with nothing but text, as most are."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


PlainMessages = Annotated[list[PlainMessage], msgspec.Meta(min_length=1)]
_decode_messages = msgspec.json.Decoder[list[PlainMessage]](PlainMessages).decode
_decode_text = msgspec.json.Decoder(str).decode


def plain_messages(fields: Mapping[str, Raw]) -> list[PlainMessage] | None:
    """Return the messages of a chat's body; None if they are not plain, or not valid."""
    try:
        return _decode_messages(fields.get("messages", b""))
    except msgspec.DecodeError:
        return None


def plain_text(fields: Mapping[str, Raw]) -> str | None:
    """Return the prompt of a completion's body; None if it is not one text."""
    try:
        return _decode_text(fields.get("prompt", b""))
    except msgspec.DecodeError:
        return None


def encode_prompts(tokenizer: ModelTokenizer, request: Request) -> list[list[int]]:
    """Return the token ids of each prompt of `request`: one for a chat, one or more for a plain completion."""
    if isinstance(request, ChatCompletionRequest):
        messages = template_messages(request.messages, with_short_ids=tokenizer.call_format is MISTRAL)
        tools = _template_tools(tokenizer, request)
        return [tokenizer.encode_chat(messages, request.template_kwargs, tools, request.render_options)]
    with_special = request.add_special_tokens is not False
    return [tokenizer.encode_prompt(prompt, add_special_tokens=with_special) for prompt in request.prompts]


def _template_tools(tokenizer: ModelTokenizer, request: ChatCompletionRequest) -> list[dict[str, Any]]:
    if request.choice.mode == "none" and not tokenizer.renderer.supports_tools:
        return []
    return [tool.as_template_input() for tool in request.tools or ()]


def chat_encoder(tokenizer: ModelTokenizer, request: ChatCompletionRequest) -> PromptEncoder:
    """Return `encode_prompts` for chats that differ from `request` in their messages only, if those are plain."""
    template_kwargs, options = request.template_kwargs, request.render_options
    tools = _template_tools(tokenizer, request)

    def encode(fields: Mapping[str, Raw]) -> list[int] | None:
        plain = plain_messages(fields)
        if plain is None:
            return None
        messages = [
            {"role": "system" if each.role == "developer" else each.role, "content": each.content}
            for each in plain
        ]
        return tokenizer.encode_chat(messages, template_kwargs, tools, options)

    return encode


def text_encoder(tokenizer: ModelTokenizer, request: CompletionRequest) -> PromptEncoder:
    """Return `encode_prompts` for completions that differ from `request` in their prompt only, if that is one text."""
    with_special = request.add_special_tokens is not False

    def encode(fields: Mapping[str, Raw]) -> list[int] | None:
        prompt = plain_text(fields)
        if prompt is None:
            return None
        return tokenizer.encode_prompt(prompt, add_special_tokens=with_special)

    return encode


def truncated(request: Request, token_ids: list[int], max_model_len: int) -> list[int]:
    """Return the end of a prompt that `truncate_prompt_tokens` asks for: so many tokens, or for -1 as many as leave
    room for the output."""
    most = request.truncate_prompt_tokens
    if most is None:
        return token_ids
    if most == -1:
        most = max(max_model_len - (request.requested_max_tokens or 1), 1)
    return token_ids[-most:]


def unused_template_kwargs(tokenizer: ModelTokenizer, request: Request) -> list[str]:
    """Return the parameters of `request` that this model's chat template does not read."""
    if not isinstance(request, ChatCompletionRequest):
        return []
    unused = request.template_kwargs.keys() - tokenizer.renderer.variables
    inner = request.chat_template_kwargs or {}
    return [f"chat_template_kwargs.{name}" if name in inner else name for name in sorted(unused)]
