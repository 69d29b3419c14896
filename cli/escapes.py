r"""Escapes in option values: `\n`, `\t` and `\\`, which a shell leaves as they are typed."""

from __future__ import annotations

import re

import click

_ESCAPE = re.compile(r"\\([nt\\])")
_MEANINGS = {"n": "\n", "t": "\t", "\\": "\\"}


def unescaped(text: str) -> str:
    r"""Return the text with `\n` as a line break, `\t` as a tab and `\\` as one backslash."""
    return _ESCAPE.sub(lambda match: _MEANINGS[match[1]], text)


def unescape(
    _context: click.Context, _parameter: click.Parameter, value: str | tuple[str, ...] | None
) -> str | tuple[str, ...] | None:
    """Unescape the value, or all values, of an option; used as its callback."""
    if isinstance(value, tuple):
        return tuple(map(unescaped, value))
    return None if value is None else unescaped(value)
