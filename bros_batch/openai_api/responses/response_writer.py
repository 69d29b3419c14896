"""Writes a response as its chat answer arrives: the events of a stream, and the complete object at the end.

A response that is not streamed is written in the same way, from the whole answer in one piece, so both are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bros_batch.openai_api.responses.response_object import Status, response_usage

Json = dict[str, Any]
Kind = Literal["reasoning", "message", "function_call"]

# Of the deltas of a response in the background, in characters: about two tokens.
PIECE_CHARS = 8

PREFIXES: dict[Kind, str] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


@dataclass(slots=True)
class _OpenItem:
    """The item of the output that is being written. `call` is the number of a tool call among its answer's."""

    kind: Kind
    id: str
    index: int
    call: int = -1
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    held: str = ""  # text that is not in an event yet


class ResponseWriter:
    """Turns the deltas of one chat answer into events. Each event is a JSON object with its `sequence_number`.

    `begun` is the response without output. With `piece_chars`, each delta has that many characters but for the last one
    of an item, so that the events do not depend on how the text came; they have no log-probabilities then.
    """

    def __init__(self, begun: Json, piece_chars: int | None = None) -> None:
        self._begun = begun
        self._piece_chars = piece_chars
        self._suffix = str(begun["id"]).removeprefix("resp_")
        self._output: list[Json] = []
        self._item: _OpenItem | None = None
        self._num_events = 0
        self.response: Json | None = None  # the complete object, once it is

    def begin(self, *, queued: bool = False) -> Iterator[Json]:
        """Yield the events before the first output; with `queued`, those of a response in the background."""
        yield self._lifecycle("response.created", "queued" if queued else "in_progress")
        if queued:
            yield self._lifecycle("response.queued", "queued")
        yield self._lifecycle("response.in_progress", "in_progress")

    def skip(self, events: Sequence[Json]) -> None:
        """Take note of events that were sent already."""
        self._num_events += len(events)

    def push(self, delta: Json, logprobs: Sequence[Json] = ()) -> Iterator[Json]:
        """Yield the events for the delta of a chat's chunk, or for a whole message."""
        if text := delta.get("reasoning_content"):
            yield from self._push_text("reasoning", text, ())
        if (text := delta.get("content")) or logprobs:
            yield from self._push_text("message", text or "", logprobs)
        for call in delta.get("tool_calls") or ():
            yield from self._push_call(call)

    def finish(self, finish_reason: str, usage: Json, completed_at: float) -> Iterator[Json]:
        """Yield the events that end the response."""
        if self._item is None and not self._output:  # an answer without text is a message, too
            yield from self._open(_OpenItem("message", self._new_id("message"), 0))
        is_complete = finish_reason != "length"
        yield from self._close("completed" if is_complete else "incomplete")
        status: Status = "completed" if is_complete else "incomplete"
        self.response = {
            **self._begun,
            "status": status,
            "output": self._output,
            "usage": usage,
            "completed_at": int(completed_at) if is_complete else None,
            "incomplete_details": None if is_complete else {"reason": "max_output_tokens"},
        }
        yield self._event(f"response.{status}", response=self.response)

    def fail(self, code: str, message: str) -> Iterator[Json]:
        """Yield the events that end the response with an error."""
        yield from self._close("incomplete")
        error = {"code": code, "message": message}
        self.response = {**self._begun, "status": "failed", "output": self._output, "error": error}
        yield self._event("response.failed", response=self.response)

    def end_as(self, ended: Json) -> Iterator[Json]:
        """Yield the events that end the response as one that has ended before."""
        yield from self._close("completed" if ended["status"] == "completed" else "incomplete")
        yield self._event(f"response.{ended['status']}", response=ended)

    # Items ----------------------------------------------------------------------------------------------------

    def _push_text(self, kind: Kind, text: str, logprobs: Sequence[Json]) -> Iterator[Json]:
        item = self._item
        if item is None or item.kind != kind:
            yield from self._close("completed")
            item = _OpenItem(kind, self._new_id(kind), len(self._output))
            yield from self._open(item)
        item.logprobs += logprobs
        yield from self._add(item, text, logprobs)

    def _push_call(self, call: Json) -> Iterator[Json]:
        item, number = self._item, call.get("index", -1)
        function = call.get("function") or {}
        if item is None or item.kind != "function_call" or item.call != number or call.get("id"):
            yield from self._close("completed")
            item = _OpenItem(
                "function_call",
                self._new_id("function_call"),
                len(self._output),
                number,
                call.get("id") or "",
                function.get("name") or "",
            )
            yield from self._open(item)
        if arguments := function.get("arguments"):
            yield from self._add(item, arguments)

    def _add(self, item: _OpenItem, text: str, logprobs: Sequence[Json] = ()) -> Iterator[Json]:
        item.pieces.append(text)
        if self._piece_chars is None:
            yield self._delta(item, text, logprobs)
            return
        text = item.held + text
        num_chars = len(text) - len(text) % self._piece_chars
        item.held = text[num_chars:]
        for start in range(0, num_chars, self._piece_chars):
            yield self._delta(item, text[start : start + self._piece_chars])

    def _delta(self, item: _OpenItem, text: str, logprobs: Sequence[Json] = ()) -> Json:
        about: Json = {"item_id": item.id, "output_index": item.index, "delta": text}
        match item.kind:
            case "message":
                about |= {"content_index": 0, "logprobs": [*logprobs]}
                return self._event("response.output_text.delta", **about)
            case "reasoning":
                return self._event("response.reasoning_text.delta", **about, content_index=0)
            case "function_call":
                return self._event("response.function_call_arguments.delta", **about)

    def _open(self, item: _OpenItem) -> Iterator[Json]:
        self._item = item
        empty = _item_object(item, "", "in_progress") | (
            {} if item.kind == "function_call" else {"content": []}
        )
        yield self._event("response.output_item.added", output_index=item.index, item=empty)
        if item.kind != "function_call":
            yield self._part_event("response.content_part.added", item, "")

    def _close(self, status: str) -> Iterator[Json]:
        item = self._item
        if item is None:
            return
        self._item = None
        if item.held:
            yield self._delta(item, item.held)
        text = "".join(item.pieces)
        about: Json = {"item_id": item.id, "output_index": item.index}
        match item.kind:
            case "message":
                yield self._event(
                    "response.output_text.done", **about, content_index=0, text=text, logprobs=item.logprobs
                )
            case "reasoning":
                yield self._event("response.reasoning_text.done", **about, content_index=0, text=text)
            case "function_call":
                yield self._event(
                    "response.function_call_arguments.done", **about, name=item.name, arguments=text
                )
        if item.kind != "function_call":
            yield self._part_event("response.content_part.done", item, text)
        done = _item_object(item, text, status)
        self._output.append(done)
        yield self._event("response.output_item.done", output_index=item.index, item=done)

    def _new_id(self, kind: Kind) -> str:
        return f"{PREFIXES[kind]}_{self._suffix}_{len(self._output)}"

    # Events ---------------------------------------------------------------------------------------------------

    def _part_event(self, kind: str, item: _OpenItem, text: str) -> Json:
        part = _part_object(item, text)
        return self._event(kind, item_id=item.id, output_index=item.index, content_index=0, part=part)

    def _lifecycle(self, kind: str, status: Status) -> Json:
        return self._event(kind, response={**self._begun, "status": status})

    def _event(self, kind: str, **fields: Any) -> Json:
        number = self._num_events
        self._num_events += 1
        return {"type": kind, "sequence_number": number, **fields}


def _part_object(item: _OpenItem, text: str) -> Json:
    if item.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": item.logprobs}


def _item_object(item: _OpenItem, text: str, status: str) -> Json:
    match item.kind:
        case "message":
            content = [_part_object(item, text)]
            return {
                "id": item.id,
                "type": "message",
                "role": "assistant",
                "status": status,
                "content": content,
            }
        case "reasoning":
            content = [_part_object(item, text)]
            return {"id": item.id, "type": "reasoning", "status": status, "summary": [], "content": content}
        case "function_call":
            return {
                "id": item.id,
                "type": "function_call",
                "status": status,
                "call_id": item.call_id,
                "name": item.name,
                "arguments": text,
            }


def written_response(begun: Json, chat: Json, completed_at: float) -> Json:
    """Return the complete object of a response whose chat answer is the `chat.completion` object `chat`."""
    writer = ResponseWriter(begun)
    choice = chat["choices"][0]
    for _ in writer.push(choice["message"], logprobs_of(choice)):
        pass
    for _ in writer.finish(choice["finish_reason"], response_usage(chat["usage"]), completed_at):
        pass
    assert writer.response is not None
    return writer.response


def begun_events(response: Json) -> list[Json]:
    """Return the events so far of a response in the background that has not ended."""
    events = [*ResponseWriter(response).begin(queued=True)]
    return events if response["status"] == "in_progress" else events[:-1]


def replayed_events(ended: Json) -> list[Json]:
    """Return the events of a stream for a response that has ended: those that were sent if it is one in the background,
    otherwise such as would have come in large pieces."""
    begun = {**ended, "output": [], "usage": None, "error": None, "incomplete_details": None}
    writer = ResponseWriter(begun, PIECE_CHARS if ended["background"] else None)
    events = [*writer.begin(queued=ended["background"])]
    for number, item in enumerate(ended["output"]):
        events += writer.push(*_delta_of(item, number))
    return [*events, *writer.end_as(ended)]


def _delta_of(item: Json, number: int) -> tuple[Json, list[Json]]:
    match item["type"]:
        case "message":
            part = item["content"][0]
            return {"content": part["text"]}, part.get("logprobs") or []
        case "reasoning":
            return {"reasoning_content": item["content"][0]["text"]}, []
        case _:
            function = {"name": item["name"], "arguments": item["arguments"]}
            return {"tool_calls": [{"index": number, "id": item["call_id"], "function": function}]}, []


def logprobs_of(choice: Json) -> list[Json]:
    """Return the log-probabilities of a chat's choice, whole or of a chunk."""
    return (choice.get("logprobs") or {}).get("content") or []
