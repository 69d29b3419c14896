"""Values of Python, numpy and pandas as values that JSON has."""

from __future__ import annotations

import base64
import contextlib
import datetime
import math
from typing import Any

from bros_batch.documents.time_texts import duration_text

_PLAIN = (str, int, bool, type(None))
# The missing values of pandas, which is not imported to compare them.
_MISSING = ("NAType", "NaTType")
_DATA_URL = "data:;base64,"


def native_value(value: Any) -> Any:
    """Return a value that JSON has: times as ISO 8601, bytes as text or else as a data URL, decimals as text."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): native_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [native_value(each) for each in value]
    if isinstance(value, bytes):
        return bytes_text(value)
    if type(value).__name__ in _MISSING:
        return None
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return _duration(value)
    if hasattr(value, "tolist"):  # a number or an array of numpy
        return native_value(value.tolist())
    return str(value)


def bytes_text(value: bytes) -> str:
    """Return bytes as the text that they are in UTF-8, or else as a data URL."""
    with contextlib.suppress(UnicodeDecodeError):
        text = value.decode()
        if "\0" not in text and not text.startswith(_DATA_URL):
            return text
    return _DATA_URL + base64.b64encode(value).decode()


def text_bytes(text: str) -> bytes:
    """Return the bytes that `bytes_text` wrote."""
    if not text.startswith(_DATA_URL):
        return text.encode()
    return base64.b64decode(text.removeprefix(_DATA_URL), validate=True)


def _duration(value: datetime.timedelta) -> str:
    """As Python writes durations. Those of pandas have nanoseconds, and words of their own."""
    microseconds = value // datetime.timedelta(microseconds=1)
    return duration_text("ns")(microseconds * 1000 + getattr(value, "nanoseconds", 0))
