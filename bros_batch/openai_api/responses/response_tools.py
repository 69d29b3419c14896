"""Tools of a response in the form that chat requests have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bros_batch.request_error import RequestError

Json = dict[str, Any]

FUNCTION_FIELDS = ("name", "description", "parameters", "strict")


def function_tools(tools: Sequence[Any]) -> list[Json]:
    """Return the tools as a response object shows them. Raises RequestError for a tool that is not a function."""
    return [_function_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def _function_tool(tool: Any, param: str) -> Json:
    if not isinstance(tool, dict):
        raise RequestError(f"'{param}' must be an object.", param)
    kind = tool.get("type")
    if kind != "function":
        raise RequestError(
            f"'{param}' is a tool of type {str(kind)[:64]!r}. This server runs no tools itself; use tools of type "
            "'function', which your program runs.",
            f"{param}.type",
        )
    if not isinstance(tool.get("name"), str):
        raise RequestError(f"'{param}.name' must be a string.", f"{param}.name")
    return {"type": "function", **{name: tool.get(name) for name in FUNCTION_FIELDS}}


def chat_tools(tools: Sequence[Json]) -> list[Json]:
    """Return function tools as chat requests have them."""
    return [
        {
            "type": "function",
            "function": {name: tool[name] for name in FUNCTION_FIELDS if tool[name] is not None},
        }
        for tool in tools
    ]


def chat_tool_choice(choice: Any, tools: Sequence[Json]) -> tuple[Any, Sequence[Json]]:
    """Return `tool_choice` as chat requests have it, and the tools that it leaves.

    Raises RequestError for a choice of a tool that is not a function.
    """
    if not isinstance(choice, dict):
        return choice, tools
    match choice.get("type"):
        case "function":
            return {"type": "function", "function": {"name": choice.get("name")}}, tools
        case "allowed_tools":
            return choice.get("mode", "auto"), _allowed(choice.get("tools"), tools)
        case kind:
            raise RequestError(
                f"'tool_choice' is of type {str(kind)[:64]!r}. Supported are the strings 'none', 'auto' and "
                "'required', and objects of type 'function' and 'allowed_tools'.",
                "tool_choice",
            )


def _allowed(wanted: Any, tools: Sequence[Json]) -> Sequence[Json]:
    param = "tool_choice.tools"
    if not isinstance(wanted, list) or not all(isinstance(tool, dict) for tool in wanted):
        raise RequestError(f"'{param}' must be a list of objects.", param)
    by_name = {tool["name"]: tool for tool in tools}
    for n, tool in enumerate(wanted):
        if tool.get("type") != "function" or tool.get("name") not in by_name:
            raise RequestError(f"'{param}[{n}]' must name a function of 'tools'.", f"{param}[{n}]")
    names = {tool["name"] for tool in wanted}
    return [tool for tool in tools if tool["name"] in names]
