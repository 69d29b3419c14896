"""The tools that a chat request offers to the model, and its choice among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from bros_batch.openai_api.request_fields import NOTHING, is_one_of, only, problem
from bros_batch.openai_api.validation import LenientPart
from bros_batch.request_error import RequestError
from bros_batch.text.tool_calls.parser import MAX_NAME_CHARS

MAX_TOOLS = 512

ChoiceMode = Literal["none", "auto", "required", "named"]


class FunctionDefinition(LenientPart):
    """A function that the model may call. `parameters` is a JSON schema, which `strict` makes binding."""

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(LenientPart):
    """One tool. There are no tools other than functions."""

    type: Literal["function"]
    function: FunctionDefinition

    @property
    def num_chars(self) -> int:
        """Characters of what the tool adds to the prompt, about."""
        function = self.function
        return len(function.name) + len(function.description or "") + len(str(function.parameters or ""))

    def as_template_input(self) -> dict[str, Any]:
        """Return the tool as chat templates read it."""
        fields = self.function.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
        return {"type": self.type, "function": fields}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What `tool_choice` asks for. `names` limits which tools may be called; None means any of them."""

    mode: ChoiceMode
    names: tuple[str, ...] | None = None


AUTO = ToolChoice("auto")


def _tool_choice(value: Any) -> ToolChoice | None:
    if is_one_of(value, NOTHING):
        return None
    if value in ("none", "auto", "required"):
        return ToolChoice(value)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function":
        return ToolChoice("named", (_function_name(value),))
    if kind == "allowed_tools":
        allowed = value.get("allowed_tools", value)
        mode = allowed.get("mode", "auto") if isinstance(allowed, dict) else None
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
            raise problem(
                "must have a 'mode', which is 'auto' or 'required', and 'tools', a list of functions"
            )
        return ToolChoice(mode, tuple(map(_function_name, tools)))
    raise problem("must be 'none', 'auto', 'required', or an object of type 'function' or 'allowed_tools'")


def _function_name(value: object) -> str:
    named = value.get("function", value) if isinstance(value, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str):
        raise problem('must name functions as {"type": "function", "function": {"name": ...}}')
    return name


ToolChoiceField = Annotated[Any, BeforeValidator(_tool_choice)]


LegacyFunctions = Annotated[
    Any, only(*NOTHING, "none", "auto", hint="use 'tools' and 'tool_choice', of which it is an older form")
]


def check_tool_choice(tools: Sequence[Tool], choice: ToolChoice) -> None:
    """Raise RequestError if `choice` asks for a tool that the request does not have."""
    if choice.mode in ("none", "auto") and choice.names is None:
        return
    if not tools:
        raise RequestError("'tool_choice' asks for a call, but the request has no 'tools'.", "tool_choice")
    known = {tool.function.name for tool in tools}
    for name in choice.names or ():
        if name not in known:
            raise RequestError(
                f"'tool_choice' names {name!r}, which is not one of the 'tools'.", "tool_choice"
            )
