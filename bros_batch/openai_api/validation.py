"""Validation of JSON request bodies: a strict base model, and the first problem as a RequestError."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from bros_batch.request_error import RequestError


def _fail_fast(schema: Any) -> None:
    """Make every list in a schema stop at its first invalid element."""
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "tuple", "set", "frozenset"):
            schema["fail_fast"] = True
        schema = list(schema.values())
    if isinstance(schema, list | tuple):
        for part in schema:
            _fail_fast(part)


class RequestPart(BaseModel):
    """Base of all request models: strict types, no unknown fields, finite numbers only.

    Every list stops at its first invalid element. A list of a million of them would otherwise cost a gigabyte, because
    pydantic describes each error.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema


PartT = TypeVar("PartT", bound=RequestPart)


def validate(model: type[PartT], raw: bytes | str) -> PartT:
    """Parse the JSON in `raw` as `model`. Raises RequestError for the first problem found."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _request_error(error) from None


def _request_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        return RequestError(f"The body is not valid JSON: {message.removeprefix('Invalid JSON: ')}.")
    steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    param = "".join(steps).removeprefix(".")
    if not param:
        return RequestError("The body must be a JSON object.")
    if kind == "extra_forbidden":
        return RequestError(f"Unknown parameter: '{param}'.", param)
    if kind == "missing":
        return RequestError(f"Missing required parameter: '{param}'.", param)
    if kind == "request":
        return RequestError(f"'{param}' {message}.", param)
    return RequestError(f"Invalid '{param}': {_rephrased(message)}{_shown(first.get('input'))}.", param)


def _rephrased(message: str) -> str:
    return (message[:1].lower() + message[1:]).replace(" after validation", "")


def _shown(value: object) -> str:
    return f", but got {value!r}" if isinstance(value, int | float | bool) else ""
