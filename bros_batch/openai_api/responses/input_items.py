"""Input items of a response: their stored form, and the chat messages that they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bros_batch.request_error import RequestError

Json = dict[str, Any]

MESSAGE_ROLES = ("user", "assistant", "system", "developer")
TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
ID_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


def normalized_items(given: str | Sequence[Json], suffix: str) -> list[Json]:
    """Return input items in the form in which clients read them back: with type, id and lists of content parts.

    `suffix` is that of the response, from which the ids of items are derived that have none. Raises RequestError for
    an item that is not supported.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_normalized(item, f"input[{index}]", f"{suffix}_in{index}") for index, item in enumerate(given)]


def _normalized(item: Json, param: str, suffix: str) -> Json:
    kind = item.get("type") or "message"
    if kind == "item_reference":
        raise RequestError(
            f"'{param}' refers to an item by its id, which is not supported. Send the item itself, or continue a "
            "response with 'previous_response_id'.",
            f"{param}.type",
        )
    if not isinstance(kind, str) or kind not in ID_PREFIXES:
        found = f"of type {kind[:64]!r}" if isinstance(kind, str) else "whose type is not a string"
        raise RequestError(
            f"'{param}' is an item {found}. Supported types are {', '.join(ID_PREFIXES)}.", f"{param}.type"
        )
    given_id = item.get("id")
    if given_id is not None and not isinstance(given_id, str):
        raise RequestError(f"'{param}.id' must be a string.", f"{param}.id")
    common = {"id": given_id or f"{ID_PREFIXES[kind]}_{suffix}", "type": kind}
    match kind:
        case "message":
            return {**common, **_message(item, param), "status": "completed"}
        case "reasoning":
            parts = {name: _parts(item.get(name), f"{param}.{name}") for name in ("summary", "content")}
            return {**common, **parts}
        case "function_call":
            names = ("call_id", "name", "arguments")
            return {**common, **{name: _string(item, name, param) for name in names}, "status": "completed"}
        case _:
            call_id = _string(item, "call_id", param)
            output = _output(item.get("output"), f"{param}.output")
            return {**common, "call_id": call_id, "output": output, "status": "completed"}


def _message(item: Json, param: str) -> Json:
    role = item.get("role")
    if role not in MESSAGE_ROLES:
        raise RequestError(f"'{param}.role' must be one of {', '.join(MESSAGE_ROLES)}.", f"{param}.role")
    content = item.get("content")
    if content is None and role == "assistant":
        content = ""
    is_answer = role == "assistant"
    kind = "output_text" if is_answer else "input_text"
    extra: Json = {"annotations": []} if is_answer else {}
    if isinstance(content, str):
        return {"role": role, "content": [{"type": kind, "text": content, **extra}]}
    if not isinstance(content, list):
        raise RequestError(f"'{param}.content' must be a string or a list of text parts.", f"{param}.content")
    texts = [_part_text(part, f"{param}.content[{n}]") for n, part in enumerate(content)]
    return {"role": role, "content": [{"type": kind, "text": text, **extra} for text in texts]}


def _part_text(part: Any, param: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        found = f"parts of type {kind[:64]!r} are" if isinstance(kind, str) else "a part without a type is"
        raise RequestError(f"'{param}' must be text: {found} not supported.", param)
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise RequestError(f"'{param}.{TEXT_PARTS[kind]}' must be a string.", param)
    return text


def _parts(value: Any, param: str) -> list[Json]:
    """Return the text parts of a reasoning item, which may have none."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError(f"'{param}' must be a list of text parts.", param)
    for n, part in enumerate(value):
        if not (
            isinstance(part, dict)
            and part.get("type") in ("reasoning_text", "summary_text")
            and isinstance(part.get("text"), str)
        ):
            raise RequestError(f"'{param}[{n}]' must be a part of text.", f"{param}[{n}]")
    return [{"type": part["type"], "text": part["text"]} for part in value]


def _output(value: Any, param: str) -> str | list[Json]:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return [
            {"type": "input_text", "text": _part_text(part, f"{param}[{n}]")} for n, part in enumerate(value)
        ]
    raise RequestError(f"'{param}' must be a string or a list of text parts.", param)


def _string(item: Json, name: str, param: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        what = "is missing" if value is None else "must be a string"
        raise RequestError(f"'{param}.{name}' {what}.", f"{param}.{name}")
    return value


def chat_messages(items: Iterable[Json], instructions: str | None) -> list[Json]:
    """Return the chat messages of a conversation of normalized items, with `instructions` as its system message.

    Consecutive items of the assistant (reasoning, text, tool calls) are parts of one message, as chat templates have
    it. Instructions precede a system message at the start of the conversation and are joined with it, because many
    templates know one system message only.
    """
    messages: list[Json] = []
    head = [instructions] if instructions else []
    for item in items:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                answer = _assistant(messages, with_text=True)
                answer["content"] = _joined(item["content"])
            case "message":
                is_system = item["role"] in ("system", "developer")
                text = _joined(item["content"])
                if is_system and head and not messages:
                    head.append(text)
                else:
                    messages.append({"role": item["role"], "content": text})
            case "reasoning":
                text = _joined(item["content"] or item["summary"])
                if text:
                    messages.append({"role": "assistant", "content": None, "reasoning_content": text})
            case "function_call":
                call = {"name": item["name"], "arguments": item["arguments"]}
                calls = _assistant(messages).setdefault("tool_calls", [])
                calls.append({"id": item["call_id"], "type": "function", "function": call})
            case _:
                output = item["output"]
                text = output if isinstance(output, str) else _joined(output)
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": text})
    return [{"role": "system", "content": "\n\n".join(head)}, *messages] if head else messages


def _assistant(messages: list[Json], with_text: bool = False) -> Json:
    """Return the message to which the assistant's next item belongs; text begins a new one after text or tool calls."""
    last = messages[-1] if messages else None
    if last is not None and last["role"] == "assistant":
        is_over = with_text and (last["content"] is not None or "tool_calls" in last)
        if not is_over:
            return last
    messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _joined(parts: Iterable[Json]) -> str:
    return "".join(part["text"] for part in parts)
