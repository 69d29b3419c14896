"""Write docs/api.md, the table of all routes of the API and all fields of their bodies, from the code.

    python scripts/api_table.py            # write the file
    python scripts/api_table.py --check    # fail if it is not current

Routes come from the application, bodies from the models that their handlers parse, and what becomes of a field from its
type. Nothing here names a route or a field.
"""

from __future__ import annotations

import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parents[1]))

from bros_batch.openai_api.endpoint import Endpoint
from bros_batch.openai_api.registry import REGISTRY
from bros_batch.openai_api.request_fields import NOTHING, HarmlessOnly, IgnoredField
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.openai_api.validation import LenientPart, RequestPart
from bros_batch.settings import Settings
from bros_batch.web.app import create_app

PATH = Path(__file__).parents[1] / "docs" / "api.md"
INTRODUCTION = """# The API

This file is made from the code by `scripts/api_table.py`; a test checks that it is current.

A **supported** field has an effect. An **ignored** one is accepted with any value and has none. A **refused** one is
an error, except at the values shown, which ask for nothing. Fields that are not in a table are ignored, or, with
`--strict`, refused; those of a part that is marked *strict* are always refused. The header `x-bros-ignored` of a
response names the fields of its request that were ignored. Errors have OpenAI's format, and name the field at fault in
`param`.

The routes that `/v1/batches` takes as `endpoint` have the same bodies in the lines of a batch.
"""
BASES = (RequestPart, LenientPart, ServedRequest)
# Where handlers and the functions that parse their bodies are.
OURS = "bros_batch."
PAGES = ("bros_batch.web.dashboard.", "bros_batch.web.login")


@dataclass(frozen=True)
class Row:
    """One field of a body."""

    name: str
    status: str
    values: str


def api_routes() -> list[Route | APIRoute]:
    """Return the routes of the API, without the dashboard's pages, by path."""
    routes = create_app(Settings()).state.routes
    kept = [route for route in routes if not route.endpoint.__module__.startswith(PAGES)]
    return sorted(
        kept, key=lambda route: (not route.path.startswith("/v1"), route.path, sorted(route.methods or ()))
    )


def body_models(route: Route | APIRoute) -> list[type[RequestPart]]:
    """Return the models of the bodies that a route accepts; most have one or none."""
    endpoint = REGISTRY.get(route.path) if "POST" in (route.methods or ()) else None  # type: ignore[call-overload]
    handler = route.endpoint if endpoint is None else type(endpoint).parse
    return _models_in(handler, set())


def _models_in(function: Callable[..., Any], seen: set[Any]) -> list[type[RequestPart]]:
    """Return the models that a function names, or else those of the first function that it calls and that does."""
    if function in seen or not isinstance(function, FunctionType):
        return []
    seen.add(function)
    named = [function.__globals__.get(name) for name in _names_in(function.__code__)]
    models = [
        each
        for each in named
        if isinstance(each, type) and issubclass(each, RequestPart) and each not in BASES
    ]
    if models:
        return models
    for each in named:
        if (
            isinstance(each, FunctionType)
            and each.__module__.startswith(OURS)
            and (found := _models_in(each, seen))
        ):
            return found
    return []


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def rows(model: type[BaseModel], prefix: str = "", above: tuple[type[BaseModel], ...] = ()) -> Iterator[Row]:
    """Yield the fields of a body, those of its parts after them."""
    for name, field in model.model_fields.items():
        shown = prefix + (field.alias or name)
        yield Row(shown, *_status(field))
        for part, is_list in _parts(field.annotation):
            if part not in (*above, model):
                yield from rows(part, f"{shown}[]." if is_list else f"{shown}.", (*above, model))


def _status(field: FieldInfo) -> tuple[str, str]:
    for mark in field.metadata:
        if isinstance(mark, IgnoredField):
            return "ignored", ""
        if isinstance(mark, HarmlessOnly):
            return "refused", f"except {_harmless(mark)}"
    strict = any(part.model_config.get("extra") == "forbid" for part, _ in _parts(field.annotation))
    required = "required; " if field.is_required() else ""
    return "supported", required + _values(field) + ("; strict" if strict else "")


def _harmless(mark: HarmlessOnly) -> str:
    """Return the values that ask for nothing; the usual ones in words."""
    values = list(dict.fromkeys(map(json.dumps, mark.harmless)))
    nothing = list(map(json.dumps, NOTHING))
    if set(nothing) <= set(values):
        others = [value for value in values if value not in nothing]
        return ", ".join(["null, false or nothing in it", *(f"`{value}`" for value in others)])
    return ", ".join(f"`{value}`" for value in values)


def _parts(annotation: Any, is_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, is_list
    is_list = is_list or typing.get_origin(annotation) in (list, tuple, Sequence)
    for argument in typing.get_args(annotation):
        yield from _parts(argument, is_list)


def _values(field: FieldInfo) -> str:
    """Return the values of a field in words."""
    annotated: Any = field.annotation
    for mark in field.metadata:
        annotated = typing.Annotated[annotated, mark]
    try:
        schema = TypeAdapter(annotated).json_schema()
    except PydanticInvalidForJsonSchema:
        return ""
    words = _words(schema, schema.get("$defs", {}))
    if words in ("number", "whole number"):  # pydantic shows no limits of numbers that it first converts
        words += _range(_limits(field))
    return words


def _limits(field: FieldInfo) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mark in field.metadata:
        for name, key in (("ge", "minimum"), ("gt", "exclusiveMinimum"), ("le", "maximum")):
            if hasattr(mark, name):
                found[key] = getattr(mark, name)
    return found


def _words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _words(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for several in ("anyOf", "oneOf"):
        if several in schema:
            found = [_words(each, definitions) for each in schema[several] if each.get("type") != "null"]
            return " or ".join(dict.fromkeys(filter(None, found)))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    match schema.get("type"):
        case "boolean":
            return "true or false"
        case "integer" | "number" as kind:
            return ("whole number" if kind == "integer" else "number") + _range(schema)
        case "string":
            most = schema.get("maxLength")
            return f"text of at most {most:,} characters" if most else "text"
        case "array":
            items = _words(schema.get("items", {}), definitions)
            most = schema.get("maxItems")
            return "list" + (f" of at most {most:,}" if most else "") + (f": {items}" if items else "")
        case "object":
            return "object"
    return ""


def _range(schema: dict[str, Any]) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most = schema.get("maximum")
    words = ""
    if least is not None:
        words = f" from {least:,}"
    elif above is not None:
        words = f" above {above:,}"
    if most is not None and most < 2**31 - 1:
        words += f" to {most:,}" if words else f" up to {most:,}"
    return words


def purpose(route: Route | APIRoute) -> str:
    """Return what a route does: the first sentence of its endpoint's docstring."""
    endpoint: Endpoint[Any] | None = REGISTRY.get(route.path) if "POST" in (route.methods or ()) else None  # type: ignore[call-overload]
    text = (type(endpoint) if endpoint is not None else route.endpoint).__doc__ or ""
    sentence = re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]
    without_path = re.sub(r"^`[A-Z]+ [^`]+`[:.]? ?", "", sentence)
    return without_path[:1].upper() + without_path[1:]


def query_names(route: Route | APIRoute) -> list[str]:
    """Return the parameters that a route takes from the URL, after the question mark."""
    return [each.alias for each in route.dependant.query_params] if isinstance(route, APIRoute) else []


def text() -> str:
    """Return the whole file."""
    routes = api_routes()
    lines = [INTRODUCTION, "## Routes", "", "| route | what it does | parameters |", "| --- | --- | --- |"]
    for route in routes:
        methods = ", ".join(sorted(method for method in route.methods or () if method != "HEAD"))
        parameters = ", ".join(f"`{name}`" for name in query_names(route))
        path = re.sub(r":\w+}", "}", route.path)
        lines.append(f"| `{methods} {path}` | {purpose(route)} | {parameters} |")
    for route in routes:
        if "POST" not in (route.methods or ()):
            continue
        models = body_models(route)
        lines += ["", f"## {route.path}"] if models else []
        for model in models:
            lines += ["", *_section(model)]
    return "\n".join(lines) + "\n"


def _section(model: type[RequestPart]) -> list[str]:
    about = " ".join((model.__doc__ or "").split())
    if model.model_config.get("extra") == "forbid":
        about += " *Strict.*"
    table = [f"| `{row.name}` | {row.status} | {row.values} |" for row in rows(model)]
    return [about, "", "| field | | values |", "| --- | --- | --- |", *table]


def main() -> None:
    current = text()
    if "--check" in sys.argv:
        if not PATH.exists() or PATH.read_text() != current:
            sys.exit(f"{PATH} is not current: run scripts/api_table.py")
        return
    PATH.write_text(current)


if __name__ == "__main__":
    main()
