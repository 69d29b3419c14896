"""The option `--schema`: a file with a JSON schema, or a pydantic model that is imported."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from cli.failure import USAGE_ERROR, Failure

MODEL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]+")
MAX_NAME_CHARS = 64
NOT_SCHEMAS = ("default", "const", "enum", "examples")

schema_option = click.option(
    "--schema",
    metavar="FILE|MODULE:MODEL",
    help="JSON schema that every answer follows: a file, or a pydantic model of a module in the current directory.",
)


def response_format(source: str) -> dict[str, Any]:
    """Return the `response_format` for the value of `--schema`. Raises Failure if no answer could follow the schema."""
    from bros_batch.openai_api.schema_check import schema_problem

    is_model = MODEL.fullmatch(source) is not None and not Path(source).exists()
    schema = _schema_of_model(source) if is_model else _schema_in_file(source)
    problem = schema_problem(schema)
    if problem is not None:
        raise Failure(f"The schema of {source} cannot be used. {problem}", USAGE_ERROR)
    title = schema.get("title")
    name = title if isinstance(title, str) else source.split(":")[-1] if is_model else Path(source).stem
    name = NOT_IN_NAMES.sub("_", name)[:MAX_NAME_CHARS].strip("_") or "answer"
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def _schema_in_file(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}.", USAGE_ERROR) from None
    except UnicodeDecodeError:
        raise Failure(f"{path} is not UTF-8 text.", USAGE_ERROR) from None
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure(f"{path} is not JSON: {error}.", USAGE_ERROR) from None
    if not isinstance(schema, dict):
        raise Failure(f"{path} does not hold a JSON schema, which is an object.", USAGE_ERROR)
    return schema


def _schema_of_model(source: str) -> dict[str, Any]:
    from pydantic import BaseModel, PydanticUserError

    module_name, _, model_name = source.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's, and may fail in any way
        raise Failure(f"Cannot import {module_name}: {type(error).__name__}: {error}.", USAGE_ERROR) from None
    model = getattr(module, model_name, None)
    if not isinstance(model, type) or not issubclass(model, BaseModel):
        raise Failure(f"{module_name} has no pydantic model named {model_name}.", USAGE_ERROR)
    try:
        schema: dict[str, Any] = _closed(model.model_json_schema())
    except PydanticUserError as error:
        raise Failure(f"{source} has no JSON schema: {str(error).splitlines()[0]}", USAGE_ERROR) from None
    return schema


def _closed(schema: Any) -> Any:
    """Forbid properties that a model does not name, which it would ignore. OpenAI's client does the same."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: value if name in NOT_SCHEMAS else _closed(value) for name, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed
