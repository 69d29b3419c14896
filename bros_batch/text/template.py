"""Prompt templates: `{field}` places that are filled from a document."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bros_batch.document_fields import NO_FIELD, found_field, plain_name
from bros_batch.request_error import RequestError

MAX_TEMPLATE_CHARS = 200_000
MAX_PLACES = 1_000
# A template can name a long field many times, so the prompt that it makes has a limit of its own.
MAX_PROMPT_CHARS = 16 * 1024**2
MAX_NAMED_FIELDS = 20
MAX_NAME_CHARS = 100
MAX_COMPARED_FIELDS = 1000

# Each alternative is decided in one pass over its characters (the possessive `++` never gives one back), and no two
# attempts share characters, so that finding all marks takes time in proportion to the length of the template.
_MARKS = re.compile(r'\{\{|\}\}|\{([^\S\r\n]*+[^\s{}"][^{}"\r\n]*+)\}')


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
        names the row of the document, for a missing field and for a prompt of more than MAX_PROMPT_CHARS.
        """
        values = {name: self._value(document, name, line) for name in self.fields}
        size = sum(map(len, self.texts)) + sum(len(values[name]) for name in self.names)
        if size > MAX_PROMPT_CHARS:
            raise RequestError(
                f"Row {line}: the prompt has {size:,} characters with the document's fields in it; "
                f"{MAX_PROMPT_CHARS:,} are allowed.",
                "prompt",
            )
        pieces = [self.texts[0]]
        for name, text in zip(self.names, self.texts[1:], strict=True):
            pieces += (values[name], text)
        return "".join(pieces)

    @staticmethod
    def _value(document: Mapping[str, Any], name: str, line: int) -> str:
        value = document[name] if name in document else found_field(document, name)
        if value is NO_FIELD:
            raise RequestError(f"Row {line}: {missing_field(name, document)}", name)
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


@lru_cache(maxsize=32)
def _closest(name: str, fields: tuple[str, ...]) -> str | None:
    """Return the field whose name is most like this one. The documents of a table all have the same fields."""
    by_lower = {each.casefold(): each for each in reversed(fields)}
    close = difflib.get_close_matches(name.casefold()[:MAX_NAME_CHARS], by_lower, n=1)
    return by_lower[close[0]] if close else None


def missing_field(name: str, document: Mapping[str, Any], user: str = "the prompt") -> str:
    """Return the sentence about a field that a template, or another user, names and a document lacks."""
    fields = ", ".join(each[:MAX_NAME_CHARS] for each in list(document)[:MAX_NAMED_FIELDS]) or "none"
    more = ", ..." if len(document) > MAX_NAMED_FIELDS else ""
    shown = name if len(name) <= MAX_NAME_CHARS else f"{name[:MAX_NAME_CHARS]}..."
    closest = _closest(name, tuple(document)[:MAX_COMPARED_FIELDS])
    hint = f" Did you mean '{plain_name(closest)[:MAX_NAME_CHARS]}'?" if closest is not None else ""
    braces = " For braces as text, write {{ and }}." if user == "the prompt" else ""
    problem = f"{user} uses the field '{shown}', which the document does not have."
    return f"{problem}{hint} Its fields: {fields}{more}.{braces}"
