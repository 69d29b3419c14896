"""Tokens to answers: the text of an output, its log-probabilities, and the bodies that OpenAI's clients read.

The recorder (bulk) and the web (chat, streamed or not) share this, so that both lanes answer alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bros_batch.text.detokenize import StopCutter
from bros_batch.text.tokenizer import ModelText
from engine.wire.protocol import Choice, PositionLogprobs, Sampling

FinishReason = Literal["stop", "length"]

# JSON has no infinity. OpenAI says this for tokens that are as good as impossible.
MIN_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's bytes, its log-probability, the likeliest others, and the character its text starts at."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A further piece of an output."""

    text: str
    logprobs: list[TokenLogprob]


@dataclass(frozen=True, slots=True)
class FinishedChoice:
    """A whole output. `logprobs` is None where none were asked for."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None


class OutputText:
    """The text of one output as its tokens come: cut at the first stop string.

    `stopped` turns true at a stop string; what comes later is dropped. The token that ends an output is not
    shown. Stop strings within the first `min_tokens` tokens are text like any other.
    """

    def __init__(self, text: ModelText, sampling: Sampling) -> None:
        self._text = text
        self._stream = text.stream()
        self._cutter = StopCutter(sampling.stop)
        self._min_tokens = sampling.min_tokens
        self._ends = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            self._ends |= text.eos_token_ids
        self._keeps_logprobs = sampling.logprobs is not None
        self._by_token = self._keeps_logprobs or (bool(sampling.stop) and sampling.min_tokens > 0)
        self._held: tuple[int, PositionLogprobs | None] | None = None
        self._waiting: deque[TokenLogprob] = deque()
        self._num_tokens = 0
        self._read_chars = 0
        self._shown_chars = 0

    @property
    def stopped(self) -> bool:
        return self._cutter.stopped

    def push(self, token_ids: Sequence[int], logprobs: Sequence[PositionLogprobs] | None = None) -> Piece:
        """What can be shown, now that `token_ids` follow."""
        of_each: Sequence[PositionLogprobs | None] = logprobs or [None] * len(token_ids)
        pairs = list(zip(token_ids, of_each, strict=True))
        if self._held is not None:
            pairs.insert(0, self._held)
            self._held = None
        if pairs and pairs[-1][0] in self._ends:
            # It is text only if the output goes on after it.
            self._held = pairs.pop()
        text = self._read(pairs)
        return Piece(text, self._released(text))

    def finish(self, reason: FinishReason) -> Piece:
        """What is left, now that the output is over."""
        text = ""
        if self._held is not None and reason != "stop":
            text = self._read([self._held])
        self._held = None
        text += self._cutter.push(self._stream.finish()) + self._cutter.finish()
        logprobs = self._released(text)
        if not self.stopped:
            logprobs += self._waiting
        return Piece(text, logprobs)

    def _read(self, pairs: Sequence[tuple[int, PositionLogprobs | None]]) -> str:
        if not self._by_token:
            return self._cutter.push(self._stream.push([token_id for token_id, _ in pairs]))
        shown = []
        for token_id, logprob in pairs:
            self._num_tokens += 1
            if logprob is not None and self._keeps_logprobs and not self.stopped:
                self._waiting.append(self._token_logprob(token_id, logprob))
            text = self._stream.push((token_id,))
            self._read_chars += len(text)
            shown.append(self._cutter.push(text, armed=self._num_tokens > self._min_tokens))
        return "".join(shown)

    def _token_logprob(self, token_id: int, position: PositionLogprobs) -> TokenLogprob:
        bytes_of = self._text.bytes_of
        top = tuple((bytes_of(other), max(logprob, MIN_LOGPROB)) for other, logprob in position.top)
        return TokenLogprob(bytes_of(token_id), max(position.logprob, MIN_LOGPROB), top, self._read_chars)

    def _released(self, shown: str) -> list[TokenLogprob]:
        """Log-probabilities of the tokens whose text begins in what has been shown by now."""
        self._shown_chars += len(shown)
        released = []
        while self._waiting and self._waiting[0].offset < self._shown_chars:
            released.append(self._waiting.popleft())
        return released


def text_of(text: ModelText, token_ids: Sequence[int], sampling: Sampling, reason: FinishReason) -> str:
    """The text of a whole output."""
    output = OutputText(text, sampling)
    return output.push(token_ids).text + output.finish(reason).text


def finished_choice(text: ModelText, index: int, choice: Choice, sampling: Sampling) -> FinishedChoice:
    """A choice of the engine's as text."""
    output = OutputText(text, sampling)
    pieces = (output.push(choice.token_ids, choice.logprobs), output.finish(choice.reason))
    logprobs = [each for piece in pieces for each in piece.logprobs]
    return FinishedChoice(
        index,
        "".join(piece.text for piece in pieces),
        "stop" if output.stopped else choice.reason,
        None if sampling.logprobs is None else logprobs,
    )


def result_body(
    endpoint: str,
    *,
    request_id: str,
    model: str,
    created: int,
    text: ModelText,
    sampling: Sampling,
    choices: Sequence[Choice],
    prompt_tokens: int,
    cached_tokens: int = 0,
) -> dict[str, Any]:
    """The response body for what the engine made of a work item: the `response.body` of an output line."""
    body = chat_completion_body if endpoint == "/v1/chat/completions" else completion_body
    return body(
        request_id=request_id,
        model=model,
        created=created,
        choices=[finished_choice(text, index, choice, sampling) for index, choice in enumerate(choices)],
        usage=usage_of(prompt_tokens, sum(len(choice.token_ids) for choice in choices), cached_tokens),
    )


def usage_of(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def chat_completion_body(
    *, request_id: str, model: str, created: int, choices: Iterable[FinishedChoice], usage: dict[str, Any]
) -> dict[str, Any]:
    """OpenAI's `chat.completion` object. `created` in unix seconds."""
    return {
        "id": chat_completion_id(request_id),
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for choice in choices
        ],
        "usage": usage,
        "system_fingerprint": None,
    }


def completion_body(
    *, request_id: str, model: str, created: int, choices: Iterable[FinishedChoice], usage: dict[str, Any]
) -> dict[str, Any]:
    """OpenAI's `text_completion` object. `created` in unix seconds."""
    return {
        "id": completion_id(request_id),
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": choice.index,
                "text": choice.text,
                "logprobs": None if choice.logprobs is None else completion_logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for choice in choices
        ],
        "usage": usage,
        "system_fingerprint": None,
    }


def chat_completion_id(request_id: str) -> str:
    return "chatcmpl-" + request_id.removeprefix("req_")


def completion_id(request_id: str) -> str:
    return "cmpl-" + request_id.removeprefix("req_")


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The `logprobs` of a chat choice."""

    def shown(token: bytes, logprob: float) -> dict[str, Any]:
        return {"token": _readable(token), "logprob": logprob, "bytes": list(token)}

    content = [
        {**shown(each.token, each.logprob), "top_logprobs": [shown(*other) for other in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The `logprobs` of a plain completion's choice."""
    return {
        "tokens": [_readable(each.token) for each in logprobs],
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [
            {_readable(token): logprob for token, logprob in ((each.token, each.logprob), *each.top)}
            for each in logprobs
        ],
        "text_offset": [each.offset for each in logprobs],
    }


def _readable(token: bytes) -> str:
    return token.decode(errors="replace")
