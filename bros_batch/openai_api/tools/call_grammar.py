"""The grammar of answers that call tools: calls in the form that the model knows, with valid arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bros_batch.openai_api.grammars import schema_grammar
from bros_batch.openai_api.tools.definitions import Tool, ToolChoice
from bros_batch.openai_api.tools.lark_text import embedded, literal, mark, text_without
from bros_batch.request_error import RequestError
from bros_batch.text.tokenizer import ModelTokenizer
from bros_batch.text.tool_calls.formats import CallFormat

MAX_CALLS = 64  # of an answer with a grammar; a model that repeats itself must come to an end
ANY_OBJECT = {"type": "object"}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool that may be called. `param` is its place in the request."""

    tool: Tool
    param: str


def offered_tools(tools: Sequence[Tool], choice: ToolChoice) -> list[OfferedTool]:
    """Return the tools that `choice` leaves."""
    if choice.mode == "none":
        return []
    return [
        OfferedTool(tool, f"tools[{index}].function.parameters")
        for index, tool in enumerate(tools)
        if choice.names is None or tool.function.name in choice.names
    ]


def guarantees_calls(tools: Sequence[OfferedTool], choice: ToolChoice) -> bool:
    """Return whether the calls of an answer have to follow a grammar."""
    is_limited = choice.mode in ("required", "named") or choice.names is not None
    return bool(tools) and (is_limited or any(each.tool.function.strict for each in tools))


def call_rules(
    tokenizer: ModelTokenizer, tools: Sequence[OfferedTool], choice: ToolChoice, *, is_single: bool
) -> list[str]:
    """Return the rules `calls`, one or more calls, and `text_or_calls`, for an answer that may have none.

    With `auto`, only functions that are strict get arguments by their schema. Raises RequestError for a schema that no
    grammar can enforce.
    """
    form = tokenizer.call_format
    most = 0 if is_single else MAX_CALLS - 1
    rules = [f"arguments_{index}: {_arguments(each, choice)}" for index, each in enumerate(tools)]
    if form.has_named_form and tokenizer.added_token_id("[ARGS]") is not None:
        rules += _named_calls(tokenizer, form, tools, most)
    else:
        rules += _object_calls(tokenizer, form, tools, most)
    return rules


def _arguments(offered: OfferedTool, choice: ToolChoice) -> str:
    function = offered.tool.function
    if choice.mode == "auto" and not function.strict:
        return embedded(schema_grammar(ANY_OBJECT, offered.param))
    schema = NO_ARGUMENTS if function.parameters is None else {**ANY_OBJECT, **function.parameters}
    return embedded(schema_grammar(schema, offered.param))


def _object_calls(
    tokenizer: ModelTokenizer, form: CallFormat, tools: Sequence[OfferedTool], most: int
) -> list[str]:
    """Calls that are objects: each between marks, in a list after a mark, or bare."""
    opening, closing = "", ""
    if form.closing is not None:
        opening, closing = "\n", "\n"
    heads = [
        literal(f'{opening}{{"name": {literal(each.tool.function.name)}, "{form.arguments_key}": ')
        for each in tools
    ]
    end = literal("}" + closing)
    objects = " | ".join(f"{head} arguments_{index} {end}" for index, head in enumerate(heads))
    rules = [f"object: {objects}"]
    if form.opening is not None and form.closing is not None:
        rules.append(f"call: {mark(tokenizer, form.opening)} object {mark(tokenizer, form.closing)}")
        rules.append("calls: call" + _more('"\\n" call', most))
        return rules + _text_before_mark(
            tokenizer, form.opening, f"object {mark(tokenizer, form.closing)}", most
        )
    further = _more('", " object', most)
    listed = f'"[" object{further} "]"'
    if form.opening is not None and not form.is_bare:
        rules.append(f"calls: {mark(tokenizer, form.opening)} {listed}")
        return rules + _text_before_mark(tokenizer, form.opening, listed, 0)
    if form.opening is not None:
        rules.append("calls: object" + _more(f"{literal(form.separator)} object", most))
    else:
        rules.append(f"calls: object | {listed}" if most else "calls: object")
    # What begins like a call is a call.
    return [
        *rules,
        "text_or_calls: calls | OTHER_TEXT",
        r"OTHER_TEXT: /\s*([^\s{\[](?s:.*))?/" + _without(form),
    ]


def _more(rule: str, most: int) -> str:
    """Return what matches up to `most` times `rule`."""
    return f" ({rule}){{0,{most}}}" if most else ""


def calls_as_schemas(
    tools: Sequence[OfferedTool], choice: ToolChoice, form: CallFormat
) -> list[dict[str, Any]]:
    """Return one JSON schema per tool for a bare call, for answers that are JSON either way.

    Raises RequestError for a schema with references, which would lose their targets within another schema.
    """
    schemas = []
    for each in tools:
        function = each.tool.function
        is_free = choice.mode == "auto" and not function.strict
        arguments = ANY_OBJECT if is_free else {**ANY_OBJECT, **(function.parameters or NO_ARGUMENTS)}
        if "$ref" in str(arguments):
            raise RequestError(
                f"'{each.param}' has a '$ref', which this model's form of tool calls does not allow together with "
                "'response_format'.",
                each.param,
            )
        properties = {"name": {"const": function.name}, form.arguments_key: arguments}
        schemas.append(
            {
                **ANY_OBJECT,
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        )
    return schemas


def _without(form: CallFormat) -> str:
    return "" if form.opening is None else f" & ({text_without(form.opening)})"


def _named_calls(
    tokenizer: ModelTokenizer, form: CallFormat, tools: Sequence[OfferedTool], most: int
) -> list[str]:
    """Calls that begin with the name of the tool."""
    assert form.opening is not None
    opening, middle = mark(tokenizer, form.opening), mark(tokenizer, "[ARGS]")
    named = [
        f"{literal(each.tool.function.name)} {middle} arguments_{index}" for index, each in enumerate(tools)
    ]
    rules = [f"named: {' | '.join(named)}", f"calls: {opening} named" + _more(f"{opening} named", most)]
    return rules + _text_before_mark(tokenizer, form.opening, "named" + _more(f"{opening} named", most), 0)


def _text_before_mark(tokenizer: ModelTokenizer, opening: str, body: str, most: int) -> list[str]:
    """Text in which a mark is followed by `body`, up to `most` times more."""
    rules = [f"TEXT: {text_without(opening)}", "text: TEXT", f"marked: until_mark {body}"]
    rules.append(f"text_or_calls: text | marked{{1,{most + 1}}} text")
    if tokenizer.added_token_id(opening) is None:
        return [*rules, f"until_mark[lazy]: ANY {literal(opening)}", r"ANY: /(?s:.*)/"]
    return [*rules, f"until_mark: text {mark(tokenizer, opening)}"]
