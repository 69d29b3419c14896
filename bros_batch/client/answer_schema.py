"""The schema that every answer follows: a JSON schema, a file with one, or a pydantic model."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bros_batch.client.bad_input import BadInput

if TYPE_CHECKING:
    from pydantic import BaseModel

# A pydantic model, a JSON schema, the name of a file with one, or `MODULE:MODEL`.
Schema: TypeAlias = "type[BaseModel] | Mapping[str, Any] | str | Path"

MODEL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]+")
MAX_NAME_CHARS = 64
NOT_SCHEMAS = ("default", "const", "enum", "examples")


def response_format(source: Schema) -> dict[str, Any]:
    """Return the `response_format` for a schema: itself, the name of its file, a pydantic model, or `MODULE:MODEL`.

    Raises BadInput if no answer could follow the schema.
    """
    from bros_batch.openai_api.schema_check import schema_problem

    name, shown, schema = _named_schema(source)
    problem = schema_problem(schema)
    if problem is not None:
        raise BadInput(f"The schema{shown and f' of {shown}'} cannot be used. {problem}")
    title = schema.get("title")
    name = NOT_IN_NAMES.sub("_", title if isinstance(title, str) else name)[:MAX_NAME_CHARS].strip("_")
    return {
        "type": "json_schema",
        "json_schema": {"name": name or "answer", "schema": schema, "strict": True},
    }


def _named_schema(source: Schema) -> tuple[str, str, dict[str, Any]]:
    """Return the name of the answer if the schema has no title, what messages call its source, and the schema."""
    if isinstance(source, Mapping):
        return "answer", "", dict(source)
    if isinstance(source, type):
        return source.__name__, source.__name__, _schema_of_model(source, source.__name__)
    text = str(source)
    if MODEL.fullmatch(text) is not None and not Path(text).exists():
        return text.split(":")[-1], text, _schema_of_model(_imported(text), text)
    return Path(text).stem, text, _schema_in_file(text)


def _schema_in_file(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not UTF-8 text.") from None
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON: {error}.") from None
    if not isinstance(schema, dict):
        raise BadInput(f"{path} does not hold a JSON schema, which is an object.")
    return schema


def _imported(source: str) -> Any:
    module_name, _, model_name = source.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's, and may fail in any way
        raise BadInput(f"Cannot import {module_name}: {type(error).__name__}: {error}.") from None
    return getattr(module, model_name, None)


def _schema_of_model(model: Any, source: str) -> dict[str, Any]:
    from pydantic import BaseModel, PydanticUserError

    if not isinstance(model, type) or not issubclass(model, BaseModel):
        module_name, is_named, model_name = source.partition(":")
        if is_named:
            raise BadInput(f"{module_name} has no pydantic model named {model_name}.")
        raise BadInput(f"{source} is not a pydantic model.")
    try:
        schema: dict[str, Any] = _closed(model.model_json_schema())
    except PydanticUserError as error:
        raise BadInput(f"{source} has no JSON schema: {str(error).splitlines()[0]}") from None
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
