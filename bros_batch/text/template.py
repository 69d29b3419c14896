"""Prompt templates: `{field}` places that are filled from a document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bros_batch.request_error import RequestError

MAX_TEMPLATE_CHARS = 200_000
MAX_PLACES = 1_000
# A template can name a long field many times, so the prompt that it makes has a limit of its own.
MAX_PROMPT_CHARS = 16 * 1024**2
MAX_NAMED_FIELDS = 20
MAX_NAME_CHARS = 100

# Each alternative is decided in one pass over its characters (the possessive `++` never gives one back), and no two
# attempts share characters, so that finding all marks takes time in proportion to the length of the template.
_MARKS = re.compile(r'\{\{|\}\}|\{([^{}"\r\n]++)\}')


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: the field `names[i]` stands between `texts[i]` and `texts[i + 1]`."""

    texts: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def fields(self) -> list[str]:
        """The names of the document fields that the template uses, in order of first use."""
        return list(dict.fromkeys(self.names))

    def render(self, document: Mapping[str, Any], line: int) -> str:
        """Return the template with the values of `document` in its places.

        Strings are inserted as they are, null as nothing, and all other values as JSON. Raises RequestError, which
        names the line of the document, for a missing field and for a prompt of more than MAX_PROMPT_CHARS.
        """
        values = {name: self._value(document, name, line) for name in self.fields}
        size = sum(map(len, self.texts)) + sum(len(values[name]) for name in self.names)
        if size > MAX_PROMPT_CHARS:
            raise RequestError(
                f"Line {line}: the prompt has {size:,} characters with the document's fields in it; "
                f"{MAX_PROMPT_CHARS:,} are allowed.",
                "prompt",
            )
        pieces = [self.texts[0]]
        for name, text in zip(self.names, self.texts[1:], strict=True):
            pieces += (values[name], text)
        return "".join(pieces)

    @staticmethod
    def _value(document: Mapping[str, Any], name: str, line: int) -> str:
        if name not in document:
            raise RequestError(f"Line {line}: {missing_field(name, document)}", name)
        value = document[name]
        if value is None:
            return ""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@lru_cache(maxsize=32)
def parse_template(source: str) -> Template:
    """Parse a template. Raises RequestError if it is too long or has too many places.

    `{name}` is a place. A name may have any characters except braces, double quotes and line breaks, so that most JSON
    in a prompt is text. `{{` and the `}}` that closes it stand for single braces; all other braces are text.
    """
    if len(source) > MAX_TEMPLATE_CHARS:
        raise RequestError(
            f"The template has {len(source):,} characters; {MAX_TEMPLATE_CHARS:,} are allowed. "
            "Put long text into a field of the documents.",
        )
    texts: list[str] = []
    names: list[str] = []
    text: list[str] = []  # pieces since the last place
    end = num_open = 0
    for mark in _MARKS.finditer(source):
        name = (mark[1] or "").strip()
        if mark[0] == "}}" and not num_open:  # the end of nested JSON
            continue
        if mark[1] is not None and not name:  # only spaces between the braces
            continue
        text.append(source[end : mark.start()])
        end = mark.end()
        if name:
            names.append(name)
            texts.append("".join(text))
            text = []
        else:
            num_open += 1 if mark[0] == "{{" else -1
            text.append(mark[0][0])
    if len(names) > MAX_PLACES:
        raise RequestError(f"The template has {len(names):,} places for fields; {MAX_PLACES:,} are allowed.")
    texts.append("".join([*text, source[end:]]))
    return Template(tuple(texts), tuple(names))


def missing_field(name: str, document: Mapping[str, Any]) -> str:
    """Return the sentence about a field that a template uses and a document lacks."""
    fields = ", ".join(each[:MAX_NAME_CHARS] for each in list(document)[:MAX_NAMED_FIELDS]) or "none"
    more = ", ..." if len(document) > MAX_NAMED_FIELDS else ""
    shown = name if len(name) <= MAX_NAME_CHARS else f"{name[:MAX_NAME_CHARS]}..."
    return (
        f"the prompt uses the field '{shown}', which the document does not have. Its fields: {fields}{more}. "
        "For braces as text, write {{ and }}."
    )
