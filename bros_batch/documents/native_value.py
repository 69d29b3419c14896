"""Values of Python, numpy and pandas as values that JSON has."""

from __future__ import annotations

import base64
import datetime
import math
from typing import Any

_PLAIN = (str, int, bool, type(None))
# The missing values of pandas, which is not imported to compare them.
_MISSING = ("NAType", "NaTType")


def native_value(value: Any) -> Any:
    """Return a value that JSON has: times as ISO 8601, bytes as text or else in base64, decimals as text."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): native_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [native_value(each) for each in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if type(value).__name__ in _MISSING:
        return None
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if hasattr(value, "tolist"):  # a number or an array of numpy
        return native_value(value.tolist())
    return str(value)
