"""Whether an answer is to be JSON, and which schema it follows, by the fields of a request or the defaults of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


def asks_for_json(request: Mapping[str, Any]) -> bool:
    """Whether the answer to a request, or to the documents of a job with these defaults, is JSON."""
    text = request.get("text")
    formats = (request.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    if any(isinstance(each, dict) and each.get("type") in ("json_object", "json_schema") for each in formats):
        return True
    outputs = request.get("structured_outputs")
    has_outputs = isinstance(outputs, dict) and bool(outputs.get("json") or outputs.get("json_object"))
    return has_outputs or bool(request.get("guided_json"))


def requested_schema(request: Mapping[str, Any]) -> Any:
    """The JSON schema that the answer to a request follows, or None."""
    text = request.get("text")
    for form in (request.get("response_format"), text.get("format") if isinstance(text, dict) else None):
        if isinstance(form, dict):
            inner = form.get("json_schema")
            schema = inner.get("schema") if isinstance(inner, dict) else form.get("schema")
            if schema is not None:
                return schema
    outputs = request.get("structured_outputs")
    schema = outputs.get("json") if isinstance(outputs, dict) else None
    schema = request.get("guided_json") if schema is None else schema
    return msgspec.json.decode(schema) if isinstance(schema, str) else schema
