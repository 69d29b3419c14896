"""Validation of JSON request bodies: a strict base model, and the first problem as a RequestError."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from bros_batch.openai_api.request_fields import NOTHING, IgnoredField, is_one_of
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
    """Part of a request in which clients also send fields that we do not know.

    An unknown field is accepted if its value asks for nothing, and is an error otherwise.
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

    @model_validator(mode="after")
    def _unknown_fields_ask_for_nothing(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if not is_one_of(value, NOTHING):
                raise PydanticCustomError("unknown_field", "{name}", {"name": name[:MAX_SHOWN_CHARS]})
        return self

    def ignored_names(self) -> Iterator[str]:
        """Yield the names of the fields that were given a value and have no effect."""
        for name in (*self._ignored_fields, *(self.model_extra or ())):
            if getattr(self, name) is not None:
                yield name


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
    if kind == "unknown_field":
        param = f"{param}.{message}".removeprefix(".")
        return RequestError(f"Unknown parameter: '{param}'.", param)
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
