"""The forms in which models write tool calls, and which of them a chat template teaches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

FormatName = Literal["hermes", "llama3_json", "mistral", "json"]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One form of tool calls.

    `opening` and `closing` surround each call; without `closing`, only `opening` precedes it. In a `is_bare` form, an
    output that begins with a JSON object which names a tool is a call too. `separator` stands between two calls.
    `has_named_form` means that a call may be the tool's name, `[ARGS]` and the arguments, in place of one object.
    """

    name: FormatName
    opening: str | None
    closing: str | None = None
    separator: str = "\n"
    arguments_key: str = "arguments"
    is_bare: bool = False
    has_named_form: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Names of the special tokens, in vocabularies that have them, which the parser must see."""
        named = ("[ARGS]", "[CALL_ID]") if self.has_named_form else ()
        return tuple(marker for marker in (self.opening, self.closing, *named) if marker is not None)


HERMES = CallFormat("hermes", "<tool_call>", "</tool_call>")
LLAMA3_JSON = CallFormat(
    "llama3_json", "<|python_tag|>", separator="; ", arguments_key="parameters", is_bare=True
)
MISTRAL = CallFormat("mistral", "[TOOL_CALLS]", separator=", ", has_named_form=True)
JSON = CallFormat("json", None, separator=", ", is_bare=True)

CALL_FORMATS: dict[FormatName, CallFormat] = {
    each.name: each for each in (HERMES, LLAMA3_JSON, MISTRAL, JSON)
}

_LLAMA3 = re.compile(r"<\|python_tag\|>|\"name\\?\": function name, \\?\"parameters")


def format_of_template(source: str) -> CallFormat:
    """Return the form that a chat template teaches; plain JSON if it is not one of those with marks of their own."""
    if MISTRAL.opening and MISTRAL.opening in source:
        return MISTRAL
    if HERMES.opening and HERMES.opening in source:
        return HERMES
    return LLAMA3_JSON if _LLAMA3.search(source) else JSON
