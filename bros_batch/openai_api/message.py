"""One message of a chat, with the tool calls and the tool results that it may carry."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from bros_batch.openai_api.request_fields import (
    Ignored,
    MessageContent,
    Unsupported,
    refused,
)
from bros_batch.openai_api.validation import LenientPart

SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


def _arguments(value: Any) -> Any:
    """Accept the arguments of a call as an object too, as some clients write them."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class CalledFunction(LenientPart):
    """The function of an earlier call. `arguments` is JSON, as the model wrote it."""

    name: str
    arguments: Annotated[str, BeforeValidator(_arguments)] = "{}"

    @property
    def parsed_arguments(self) -> Any:
        """The arguments as an object, which chat templates expect, or their text if the model wrote no valid JSON."""
        try:
            parsed = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return self.arguments
        return parsed if isinstance(parsed, dict) else self.arguments


class EarlierCall(LenientPart):
    """A tool call in an earlier answer of the model."""

    id: str | None = None
    type: Literal["function"] = "function"
    index: Ignored = None
    function: CalledFunction

    def as_template_input(self) -> dict[str, Any]:
        """Return the call as chat templates read it."""
        function = {"name": self.function.name, "arguments": self.function.parsed_arguments}
        return {"id": self.id or "", "type": "function", "function": function}


class Message(LenientPart):
    """One message of a chat.

    Clients send earlier answers back as they received them, with additional fields.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: MessageContent = Field(None, validate_default=True)
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: str | None = None

    id: Ignored = None
    refusal: Ignored = None
    annotations: Ignored = None
    provider_specific_fields: Ignored = None
    reasoning_details: Ignored = None
    thinking_blocks: Ignored = None

    audio: Unsupported = None
    function_call: Annotated[Any, refused("use 'tool_calls', of which it is an older form")] = None

    @property
    def num_chars(self) -> int:
        """Characters of what the message adds to the prompt."""
        calls = sum(len(call.function.name) + len(call.function.arguments) for call in self.tool_calls or ())
        own = len(self.content) + len(self.name or "") + len(self.reasoning_content or self.reasoning or "")
        return own + calls


def template_messages(messages: Sequence[Message], *, with_short_ids: bool = False) -> list[dict[str, Any]]:
    """Return messages as chat templates read them.

    Templates know `system`, not its newer name `developer`; arguments of calls are objects; and a tool's result has the
    name of the tool, which clients leave to the call's id. `with_short_ids` replaces ids of calls by ids of nine
    letters and digits, without which templates of Mistral's models raise an error.
    """
    names: dict[str, str] = {}
    values = [_template_message(message, names) for message in messages]
    if with_short_ids:
        for message in values:
            if "tool_call_id" in message:
                message["tool_call_id"] = _short_id(message["tool_call_id"])
            for call in message.get("tool_calls", ()):
                call["id"] = _short_id(call["id"])
    return values


def _short_id(call_id: str) -> str:
    if SHORT_ID.fullmatch(call_id):
        return call_id
    return blake2b(call_id.encode(errors="replace"), digest_size=5).hexdigest()[:9]


def _template_message(message: Message, names: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message.content,
    }
    if (reasoning := message.reasoning_content or message.reasoning) is not None:
        values |= {"reasoning_content": reasoning, "reasoning": reasoning}
    if message.tool_calls:
        values["tool_calls"] = [call.as_template_input() for call in message.tool_calls]
        names.update((call.id or "", call.function.name) for call in message.tool_calls)
    name = message.name
    if message.role == "tool":
        values["tool_call_id"] = message.tool_call_id or ""
        name = name or names.get(message.tool_call_id or "")
    if name is not None:
        values["name"] = name
    return values
