"""What a line of an input file becomes: an item to insert."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to insert: pending with a body, or failed with an error. Its id may be that of another item, too."""

    line_no: int
    custom_id: str | None
    body: str | None
    error_code: str | None = None
    error_message: str | None = None
    error_param: str | None = None
