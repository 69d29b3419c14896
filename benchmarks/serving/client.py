"""A lightweight client of /v1/completions, which shares the cores with the server that it measures.

It is an asyncio protocol around the httptools parser and only records when text arrives. Every request has its own
connection, so that no keep-alive limit of a server interferes; opening one on the same machine takes a fraction of a
millisecond.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from benchmarks.serving.load import Ask


@dataclass(slots=True)
class Answer:
    """The answer to a request. Times are those of `time.perf_counter`; `error` is None if the answer is complete."""

    ask: Ask
    due_s: float
    sent_s: float | None = None
    arrivals_s: list[float] = field(default_factory=list)  # one entry per piece of text
    error: str | None = "unfinished"

    @property
    def ttft_s(self) -> float:
        """Time from the scheduled start, not from the actual sending, so that delays in the client count."""
        return self.arrivals_s[0] - self.due_s

    @property
    def tpot_s(self) -> float:
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / max(self.ask.num_tokens - 1, 1)

    @property
    def e2e_s(self) -> float:
        return self.arrivals_s[-1] - self.due_s

    @property
    def tokens_per_piece(self) -> float:
        """Mean tokens per piece, since a server may send several at once; taken as 1 if the answer failed."""
        return 1.0 if self.error else self.ask.num_tokens / len(self.arrivals_s)

    def tokens_between(self, start_s: float, end_s: float) -> float:
        return self.tokens_per_piece * sum(start_s <= arrival_s < end_s for arrival_s in self.arrivals_s)


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: Sequence[_Choice] = ()
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


@dataclass(frozen=True, slots=True)
class Client:
    """Requests streamed, greedy completions of `model` from the server at `url`.

    `document_fields` are further fields of the requests that have a priority.
    """

    url: str
    model: str
    document_fields: Mapping[str, Any] = field(default_factory=dict)

    async def complete(self, answer: Answer, priority: int | None = None) -> None:
        """Send the request and record the response in `answer`.

        Errors of the server are recorded in `answer.error`, never raised. Cancellation closes the connection.
        """
        address = urlsplit(self.url)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        request = self._request(answer.ask, address.netloc, priority)
        try:
            transport, _ = await loop.create_connection(
                lambda: _Exchange(request, answer, done), address.hostname or "", address.port or 80
            )
        except OSError as error:
            answer.error = f"no connection: {error}"
            return
        try:
            await done
        finally:
            transport.abort()

    def _request(self, ask: Ask, host: str, priority: int | None) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": ask.token_ids,
            "max_tokens": ask.num_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if priority is not None:
            body |= {"priority": priority, **self.document_fields}
        content = msgspec.json.encode(body)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content


class _Exchange(asyncio.Protocol):
    """One request and its response on their own connection."""

    def __init__(self, request: bytes, answer: Answer, done: asyncio.Future[None]) -> None:
        self._request = request
        self._answer = answer
        self._done = done
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._now_s = 0.0
        self._num_tokens: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._answer.sent_s = time.perf_counter()
        cast(asyncio.Transport, transport).write(self._request)  # uvloop's transport is not a subclass

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, msgspec.MsgspecError) as error:
            self._finish(f"invalid response: {error.__cause__ or error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(f"connection lost: {exc or 'closed early'}")

    # Callbacks of the parser

    def on_body(self, body: bytes) -> None:
        *events, self._rest = (self._rest + body).split(b"\n\n")
        if self._parser.get_status_code() != 200:
            return
        for event in events:
            if not event.startswith(b"data: {"):
                continue
            content = _decode_event(event[len(b"data: ") :])
            if content.error is not None:
                self._finish(f"error event: {bytes(content.error)[:200].decode(errors='replace')}")
                return
            # A token that completes no character has no text. Neither has the last event, but it has a finish reason.
            if any(choice.text or choice.finish_reason is None for choice in content.choices):
                self._answer.arrivals_s.append(self._now_s)
            if content.usage is not None:
                self._num_tokens = content.usage.completion_tokens

    def on_message_complete(self) -> None:
        status, asked = self._parser.get_status_code(), self._answer.ask.num_tokens
        if status != 200:
            self._finish(f"HTTP {status}: {self._rest[:200].decode(errors='replace')}")
        elif self._num_tokens != asked or not self._answer.arrivals_s:
            self._finish(f"{self._num_tokens} tokens instead of {asked}")
        else:
            self._finish(None)

    def _finish(self, error: str | None) -> None:
        if not self._done.done():
            self._answer.error = error
            self._done.set_result(None)
