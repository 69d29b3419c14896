"""The input of decisions as one text: plain text, messages, and calls of tools with their results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from bros_batch.openai_api.request_fields import problem

TEXT_PARTS = ("input_text", "output_text", "text")
ROLES = ("user", "developer", "system", "assistant")
# As OpenAI limits the JSON that is a part of the input.
MAX_JSON_LEVELS = 32
MAX_JSON_VALUES = 10_000
MAX_JSON_BYTES = 256 * 1024


def text_of_input(value: Any) -> str:
    """Return the input as text. Messages of users stand one after another; others are preceded by their role."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise problem("must be a string, or a list of messages and of tools' calls and outputs")
    called: dict[str, str] = {}
    return "\n\n".join(_text_of_entry(entry, called) for entry in value)


def instructions_text(value: Any) -> str:
    """Return the instructions of a question as text: a string, or a list of parts."""
    if isinstance(value, str):
        return value
    return _joined(value)


def _text_of_entry(entry: Any, called: dict[str, str]) -> str:
    if not isinstance(entry, dict):
        raise problem("must consist of objects")
    kind = entry.get("type", "message")
    if kind == "message":
        role = entry.get("role")
        if role not in ROLES:
            raise problem(f"has a message whose role is not one of {', '.join(ROLES)}")
        content = entry.get("content")
        text = content if isinstance(content, str) else _joined(content)
        return text if role == "user" else f"{role}: {text}"
    if kind in ("function_call", "custom_tool_call"):
        name, argument = entry.get("name"), entry.get("arguments" if kind == "function_call" else "input")
        call_id = entry.get("call_id")
        if not (isinstance(name, str) and isinstance(argument, str) and isinstance(call_id, str)):
            raise problem(f"has a {kind} without name, call_id, or what it is called with")
        called[call_id] = name
        return f"assistant calls {name}: {argument}"
    if kind in ("function_call_output", "custom_tool_call_output"):
        call_id, output = entry.get("call_id"), entry.get("output")
        if not isinstance(call_id, str) or call_id not in called:
            raise problem(f"has a {kind} whose call_id is not that of a call before it")
        return f"{called[call_id]} returns: {output if isinstance(output, str) else _joined(output)}"
    raise problem(f"has an object of type {str(kind)[:40]!r}, which is not supported")


def _joined(parts: Any) -> str:
    if not isinstance(parts, list):
        raise problem("must have text, or a list of parts, as its content")
    return "\n".join(_text_of_part(part) for part in parts)


def _text_of_part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    if kind == "input_json":
        return _json_text(part.get("data"))
    if kind not in TEXT_PARTS:
        found = f"parts of type {kind[:40]!r} are" if isinstance(kind, str) else "a part without a type is"
        raise problem(f"may contain only text and JSON: {found} not supported")
    if not isinstance(part.get("text"), str):
        raise problem("has a text part whose 'text' is not a string")
    return str(part["text"])


def _json_text(data: Any) -> str:
    is_list = isinstance(data, list) and all(isinstance(each, dict) for each in data)
    if not is_list and not isinstance(data, dict):
        raise problem("has an input_json part whose 'data' is not an object or a list of objects")
    for number, level in enumerate(_levels_of(data), start=1):
        if level > MAX_JSON_LEVELS or number > MAX_JSON_VALUES:
            raise problem(
                f"has an input_json part of more than {MAX_JSON_LEVELS} levels or {MAX_JSON_VALUES} values"
            )
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode(errors="replace")) > MAX_JSON_BYTES:
        raise problem(f"has an input_json part of more than {MAX_JSON_BYTES // 1024} KiB")
    return text


def _levels_of(data: Any) -> Iterator[int]:
    """Yield the level of each value, containers included."""
    waiting = [(data, 1)]
    while waiting:
        value, level = waiting.pop()
        yield level
        if isinstance(value, Mapping):
            waiting += [(each, level + 1) for each in value.values()]
        elif isinstance(value, list):
            waiting += [(each, level + 1) for each in value]
