"""A JSON object from the bytes of a line, or what is wrong with it in words."""

from __future__ import annotations

from typing import Any

import msgspec

from bros_batch.request_error import RequestError

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def json_object(line: bytes) -> dict[str, Any]:
    """Return the object that a line holds. Raises RequestError for anything else."""
    try:
        return _decode(line)
    except msgspec.ValidationError as error:
        if "out of range" in str(error):  # the only sign of it
            raise RequestError("this contains a number that is out of range.") from None
        raise RequestError("this is not a JSON object.") from None
    except UnicodeDecodeError:
        raise RequestError("this is not valid UTF-8.") from None
    except RecursionError:
        raise RequestError("this is nested too deeply.") from None
    except msgspec.DecodeError as error:
        raise RequestError(
            f"this is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}."
        ) from None
