"""Where an answer breaks the JSON schema that was asked for, within a limit of time.

A schema is what a client sent: its patterns may take forever, and its references may name other hosts. So patterns are
matched by a library that stops, each part of the schema looks at the clock, and nothing is fetched.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import regex
from jsonschema import Draft202012Validator, FormatChecker, ValidationError
from jsonschema.validators import extend
from referencing import Registry

LIMIT_S = 0.25
MAX_SHOWN = 5
MAX_MESSAGE_CHARS = 200
FORMATS = FormatChecker(("date", "ipv4", "ipv6", "uuid"))

Check = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _TimeIsUp(Exception):
    """The check takes too long."""


def schema_breaks(schema: Any, answer: Any, limit_s: float = LIMIT_S) -> list[str] | None:
    """Return sentences about the places where an answer breaks a schema, at most MAX_SHOWN and how many more there are.

    None if that cannot be said: the check takes longer than the limit, or the schema itself is not valid.
    """
    end_s = time.monotonic() + limit_s
    try:
        validator = _validator(end_s)(schema, registry=Registry(), format_checker=FORMATS)
        found = list(validator.iter_errors(answer))
    except Exception:  # the time is up, or what the library does with a schema that is not valid
        return None
    found.sort(key=lambda error: [str(part) for part in error.absolute_path])
    sentences = [f"{_place(error)}: {_message(error)}" for error in found[:MAX_SHOWN]]
    more = len(found) - len(sentences)
    return [*sentences, f"{more} more places."] if more else sentences


@functools.lru_cache(maxsize=64)  # a page that is open asks again and again
def breaks_of_texts(schema: bytes, answer: bytes) -> list[str] | None:
    """The same for a schema and an answer in JSON."""
    return schema_breaks(msgspec.json.decode(schema), msgspec.json.decode(answer))


def _validator(end_s: float) -> Any:
    """The class that checks instances until a time."""

    def in_time(check: Check) -> Check:
        def checked(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
            if time.monotonic() > end_s:
                raise _TimeIsUp
            for error in check(validator, value, instance, schema) or ():
                if time.monotonic() > end_s:
                    raise _TimeIsUp
                yield error

        return checked

    def matches(pattern: str, text: str) -> bool:
        left_s = end_s - time.monotonic()
        try:
            return left_s > 0 and regex.search(pattern, text, timeout=left_s) is not None
        except TimeoutError:
            raise _TimeIsUp from None

    def pattern(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not matches(value, instance):
            yield ValidationError(f"{instance!r} does not match {value!r}")

    def pattern_properties(
        validator: Any, value: Any, instance: Any, schema: Any
    ) -> Iterator[ValidationError]:
        for each, part in value.items() if isinstance(instance, Mapping) else ():
            for name in filter(lambda name: matches(each, name), instance):
                yield from validator.descend(instance[name], part, path=name, schema_path=each)

    def additional_properties(
        validator: Any, value: Any, instance: Any, schema: Any
    ) -> Iterator[ValidationError]:
        if not isinstance(instance, Mapping):
            return
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        for name in instance:
            if name in known or any(matches(each, name) for each in patterns):
                continue
            if value is False:
                yield ValidationError(f"{name!r} is not among the properties")
            else:
                yield from validator.descend(instance[name], value, path=name)

    def unique_items(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if value and isinstance(instance, list):
            texts = [json.dumps(each, sort_keys=True) for each in instance]
            if len(set(texts)) < len(texts):
                yield ValidationError("some of its items are equal")

    own: dict[str, Check] = {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
        "uniqueItems": unique_items,
    }
    checks = {**Draft202012Validator.VALIDATORS, **own}
    return extend(Draft202012Validator, {name: in_time(check) for name, check in checks.items()})


def _place(error: ValidationError) -> str:
    """The place in the answer, such as `lines[2].total`."""
    parts = (
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in itertools.islice(error.absolute_path, 20)
    )
    return "".join(parts).removeprefix(".") or "The answer"


def _message(error: ValidationError) -> str:
    text = error.message
    return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[:MAX_MESSAGE_CHARS]}…"
