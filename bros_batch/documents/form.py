"""The form of an input line, and the id of a document. The command line and ingest decide both by these rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bros_batch.document_fields import NO_FIELD, found_field
from bros_batch.request_error import RequestError

BATCH = "batch"
DOCUMENT = "document"

ID_FIELDS = ("custom_id", "id")
# The fields of a line that stands for a row which could not be read: the message of the failed item, and its id if it
# is known.
ERROR_FIELD = "_error"
BAD_ROW_FIELDS = {ERROR_FIELD, "custom_id"}
MAX_CUSTOM_ID_CHARS = 512
# Every whole number up to here is exact as a float, which is what pandas makes of whole numbers beside missing ones.
MAX_EXACT_FLOAT = 2**53


def form_of(value: Mapping[str, Any], prompt_fields: Collection[str]) -> str:
    """Return the form of a line.

    A batch line has an object as its body and says where that would be posted. A document may have fields of the same
    names; it is one if the job's prompt has fields and the line has all of them.
    """
    if prompt_fields and all(found_field(value, name) is not NO_FIELD for name in prompt_fields):
        return DOCUMENT
    is_batch = isinstance(value.get("body"), dict) and ("method" in value or "url" in value)
    return BATCH if is_batch else DOCUMENT


def is_bad_row(document: Mapping[str, Any]) -> bool:
    """Return whether a line stands for a row that could not be read."""
    return isinstance(document.get(ERROR_FIELD), str) and document.keys() <= BAD_ROW_FIELDS


def document_id(document: Mapping[str, Any], names: Sequence[str] = ID_FIELDS) -> str | None:
    """Return the id of a document as text, or None if it has none. Raises RequestError for a value that is no id.

    The id is in the first field of these names that has a value.
    """
    for name in names:
        value = document.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_FLOAT:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise RequestError(f"'{name}' must be a string or a whole number, not {_kind(value)}.", name)
        return checked_id(str(value), name)
    return None


def checked_id(custom_id: str, name: str = "custom_id") -> str:
    """Return the id itself. Raises RequestError if it is empty, too long, or not text that every database stores."""
    if not custom_id:
        raise RequestError(f"'{name}' is empty.", name)
    if len(custom_id) > MAX_CUSTOM_ID_CHARS:
        raise RequestError(f"'{name}' is longer than {MAX_CUSTOM_ID_CHARS} characters.", name)
    if "\0" in custom_id:
        raise RequestError(f"'{name}' contains a NUL character.", name)
    return custom_id


def _kind(value: object) -> str:
    if isinstance(value, bool | float):
        return str(value).lower()
    return "an object" if isinstance(value, dict) else "an array"
