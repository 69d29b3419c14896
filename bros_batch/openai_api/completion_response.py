"""Response bodies of chat and plain completions, whole and in streamed chunks, as OpenAI's clients read them.

The recorder of bulk results and the web process share them, so both lanes respond alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, COMPLETIONS, SYSTEMONE
from bros_batch.text.output_decoder import FinishedChoice, FinishReason, Piece, TokenLogprob
from bros_batch.text.tool_calls.parser import CallPiece

Json = dict[str, Any]

ID_PREFIXES = {CHAT_COMPLETIONS: "chatcmpl-", COMPLETIONS: "cmpl-", SYSTEMONE: "decision-"}


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The fields that identify a response. `created` is in Unix seconds."""

    endpoint: str
    request_id: str
    model: str
    created: int

    @property
    def is_chat(self) -> bool:
        return self.endpoint == CHAT_COMPLETIONS

    @property
    def id(self) -> str:
        return ID_PREFIXES[self.endpoint] + self.request_id.removeprefix("req_")


def response_body(head: ResponseHead, choices: Iterable[FinishedChoice], usage: Json) -> Json:
    """Return OpenAI's `chat.completion` or `text_completion` object."""
    return {
        "id": head.id,
        "object": "chat.completion" if head.is_chat else "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": [
            _chat_choice(head, choice) if head.is_chat else _text_choice(choice) for choice in choices
        ],
        "usage": usage,
        "system_fingerprint": None,
    }


def _chat_choice(head: ResponseHead, choice: FinishedChoice) -> Json:
    return {
        "index": choice.index,
        "message": message_object(head.request_id, choice),
        "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs),
        "finish_reason": choice.finish_reason,
    }


def message_object(request_id: str, choice: FinishedChoice) -> Json:
    """Return the `message` of a chat choice. It has no content if it has only calls, as in OpenAI's API."""
    content = choice.text if choice.text or not choice.calls else None
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    if choice.reasoning:
        message |= _reasoning_fields(choice.reasoning)
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": call_id(request_id, choice.index, index),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(choice.calls)
        ]
    return message


def call_id(request_id: str, choice_index: int, call_index: int) -> str:
    """Return the id of a tool call, which is the same each time a response is made of a result."""
    key = f"{request_id}/{choice_index}/{call_index}"
    return f"call_{blake2b(key.encode(), digest_size=12).hexdigest()}"


def _reasoning_fields(text: str) -> Json:
    """Return reasoning under the name that most clients read, and under the one that newer clients of vLLM read."""
    return {"reasoning_content": text, "reasoning": text}


def _text_choice(choice: FinishedChoice) -> Json:
    return {
        "index": choice.index,
        "text": choice.text,
        "logprobs": None if choice.logprobs is None else text_logprobs(choice.logprobs),
        "finish_reason": choice.finish_reason,
    }


def has_incomplete_json(body: Json) -> bool:
    """Return whether a limit on tokens cut an answer of a whole response before its JSON was complete."""
    for text in _cut_texts(body):
        try:
            msgspec.json.decode(text or "")
        except msgspec.DecodeError:
            return True
    return False


def _cut_texts(body: Json) -> Iterator[str | None]:
    """Yield the texts of a whole response that a limit on tokens cut."""
    if body["object"] == "response":
        if body["status"] == "incomplete":
            items = [item for item in body["output"] if item["type"] == "message"]
            yield "".join(part["text"] for item in items for part in item["content"])
        return
    for choice in body["choices"]:
        if choice["finish_reason"] == "length":
            yield choice["message"]["content"] if "message" in choice else choice["text"]


def chunk_head(head: ResponseHead) -> Json:
    """Return the fields that all chunks of a streamed response share."""
    return {
        "id": head.id,
        "object": "chat.completion.chunk" if head.is_chat else "text_completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": None,
    }


def opening_chunk_choice(index: int) -> Json:
    """Return the choice of the first chunk of a chat output, which has the role and no text."""
    return _chat_chunk_choice(index, {"role": "assistant", "content": "", "refusal": None}, None, None)


def empty_chunk_choice(index: int) -> Json:
    """Return the choice of a chunk of a chat output whose tokens have no text.

    Clients that measure latency count such a chunk as output, and not the one that has the role.
    """
    return _chat_chunk_choice(index, {"content": ""}, None, None)


def chat_chunk_choices(
    request_id: str, index: int, piece: Piece, finish_reason: FinishReason | None
) -> list[Json]:
    """Return the choices, one per chunk, for a piece of a chat output; the finish reason has a chunk of its own."""
    deltas: list[Json] = []
    if piece.reasoning:
        deltas.append(_reasoning_fields(piece.reasoning))
    if piece.text or (piece.logprobs and not piece.reasoning and not piece.calls):
        deltas.append({"content": piece.text})
    deltas += ({"tool_calls": [_call_delta(request_id, index, call)]} for call in piece.calls)
    choices = [_chat_chunk_choice(index, delta, None, None) for delta in deltas]
    if choices and piece.logprobs:
        choices[0]["logprobs"] = chat_logprobs(piece.logprobs)
    if finish_reason is not None:
        choices.append(_chat_chunk_choice(index, {}, None, finish_reason))
    return choices


def _call_delta(request_id: str, choice_index: int, call: CallPiece) -> Json:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {
        "index": call.index,
        "id": call_id(request_id, choice_index, call.index),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _chat_chunk_choice(
    index: int, delta: Json, logprobs: Json | None, finish_reason: FinishReason | None
) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def text_chunk_choice(index: int, piece: Piece, finish_reason: FinishReason | None) -> Json:
    """Return the choice of a chunk for a piece of a plain completion."""
    logprobs = text_logprobs(piece.logprobs) if piece.logprobs else None
    return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": finish_reason}


def usage_object(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, reasoning_tokens: int | None = None
) -> Json:
    """Return OpenAI's `usage` object. `reasoning_tokens` is None for a model that does not reason."""
    usage: Json = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
    if reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return usage


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    """Return the `logprobs` object of a chat choice."""

    def entry(token: bytes, logprob: float) -> Json:
        return {"token": _readable(token), "logprob": logprob, "bytes": list(token)}

    content = [
        {**entry(each.token, each.logprob), "top_logprobs": [entry(*other) for other in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def text_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    """Return the `logprobs` object of a plain completion's choice."""
    return {
        "tokens": [named_token(each.token) for each in logprobs],
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [_by_name(each) for each in logprobs],
        "text_offset": [each.offset for each in logprobs],
    }


def _by_name(position: TokenLogprob) -> dict[str, float]:
    """Return the log-probabilities at a position by token. If two tokens have the same text, the drawn one is kept, or
    else the likelier one."""
    found: dict[str, float] = {}
    for token, logprob in ((position.token, position.logprob), *position.top):
        found.setdefault(named_token(token), logprob)
    return found


def named_token(token: bytes) -> str:
    """Return the text of a token, or its bytes as OpenAI writes those that are not text: `bytes:\\xf0\\x9f`."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _readable(token: bytes) -> str:
    return token.decode(errors="replace")
