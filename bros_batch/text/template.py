"""Prompt templates: `{field}` places that are filled from a document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bros_batch.request_error import RequestError

PLACE = re.compile(r"\{\{|\}\}|\{\s*(\w[\w .\-]*?)\s*\}")
MAX_NAMED_FIELDS = 20


def template_fields(template: str) -> list[str]:
    """Return the names of the document fields that `template` uses, in order of first use."""
    return list(dict.fromkeys(match[1] for match in PLACE.finditer(template) if match[1] is not None))


def render_template(template: str, document: Mapping[str, Any], line: int) -> str:
    """Replace each `{field}` in `template` with that field of `document`.

    Strings are inserted as they are, null as nothing, and all other values as JSON. `{{` and `}}` stand for single
    braces; braces around anything other than a field name are left alone. Raises RequestError, which names the line
    of the document, for a missing field.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name not in document:
            fields = ", ".join(map(str, list(document)[:MAX_NAMED_FIELDS])) or "none"
            raise RequestError(
                f"Line {line}: the prompt uses the field '{name}', which the document does not have. "
                f"Its fields: {fields}.",
                name,
            )
        value = document[name]
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return PLACE.sub(value_of, template)
