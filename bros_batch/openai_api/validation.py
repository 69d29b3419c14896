"""Validation of JSON request bodies: a strict base model, and the first problem as a RequestError."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from bros_batch.openai_api.request_fields import IgnoredField
from bros_batch.request_error import RequestError

MAX_SHOWN_CHARS = 80


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


class LenientPart(RequestPart):
    """Part of a request in which clients also send fields that we do not know: these are accepted, and have no effect.

    `check_strict` rejects them instead, for a server that is told to (`--strict`).
    """

    model_config = ConfigDict(extra="allow")
    _ignored_fields: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls._ignored_fields = tuple(
            name
            for name, field in cls.model_fields.items()
            if any(isinstance(each, IgnoredField) for each in field.metadata)
        )

    def ignored_names(self) -> Iterator[str]:
        """Yield the names of the fields that were given a value and have no effect, also those of nested parts."""
        for prefix, part in _lenient_parts("", self):
            given = part.model_fields_set
            for name in (*part._ignored_fields, *(part.model_extra or ())):
                if name in given and getattr(part, name) is not None:
                    yield prefix + name

    def unknown_names(self) -> Iterator[str]:
        """Yield the names of the fields that we do not know, also those of nested parts."""
        for prefix, part in _lenient_parts("", self):
            for name in part.model_extra or ():
                yield prefix + name


def _lenient_parts(prefix: str, part: LenientPart) -> Iterator[tuple[str, LenientPart]]:
    """Yield `part` and the lenient parts within it, each with what precedes the names of its fields."""
    yield prefix, part
    given = part.model_fields_set  # few of the fields of a request, and this is done for each line of a job
    for name in type(part).model_fields:
        if name not in given:
            continue
        value = getattr(part, name)
        if isinstance(value, LenientPart):
            yield from _lenient_parts(f"{prefix}{name}.", value)
        elif isinstance(value, list | tuple) and value and isinstance(value[0], LenientPart):
            for index, each in enumerate(value):
                if isinstance(each, LenientPart):
                    yield from _lenient_parts(f"{prefix}{name}[{index}].", each)


def check_strict(part: LenientPart) -> None:
    """Raise RequestError if `part` has a field that we do not know."""
    for name in part.unknown_names():
        raise _unknown_field(name[:MAX_SHOWN_CHARS])


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
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):  # of a check of several fields
        return cause
    if kind == "json_invalid":
        return RequestError(f"The body is not valid JSON: {message.removeprefix('Invalid JSON: ')}.")
    steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    param = "".join(steps).removeprefix(".")
    if not param:
        return RequestError("The body must be a JSON object.")
    if kind == "extra_forbidden":
        return _unknown_field(param)
    if kind == "missing":
        return RequestError(f"Missing required parameter: '{param}'.", param)
    if kind == "request":
        return RequestError(f"'{param}' {message}.", param)
    return RequestError(f"Invalid '{param}': {_rephrased(message)}{_shown(first.get('input'))}.", param)


def _unknown_field(name: str) -> RequestError:
    return RequestError(f"Unknown parameter: '{name}'.", name)


def _rephrased(message: str) -> str:
    return (message[:1].lower() + message[1:]).replace(" after validation", "")


def _shown(value: object) -> str:
    return f", but got {value!r}" if isinstance(value, int | float | bool) else ""
