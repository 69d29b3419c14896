"""What is wrong with a value of a setting or of a URL parameter, in words of ours instead of the validator's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_SHOWN_CHARS = 100
_TYPES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "tuple": "a list",
}
_BOUNDS = {
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
}


def expectation(error: Mapping[str, Any]) -> str:
    """Say what an entry of `ValidationError.errors()` expects: `must be an integer, not 'abc'`."""
    kind: str = error["type"]
    context = error.get("ctx") or {}
    if kind == "value_error":
        return f"is not valid: {context['error']}"
    wanted = _BOUNDS[kind].format(**context) if kind in _BOUNDS else _TYPES.get(kind.partition("_")[0])
    if wanted is None:
        return f"is not valid: {error['msg'][:1].lower()}{error['msg'][1:]}"
    # Text may be a secret, and so may what stands in its place.
    given = "" if kind == "string_type" else f", not {_shown(error['input'])}"
    return f"must be {wanted}{given}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
