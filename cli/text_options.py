"""Text that the user gives: it must be UTF-8, as all text of a request.

Bytes of an argument that are not UTF-8 become surrogates in Python, which no request can contain.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from bros_batch.client.plain_text import is_text


def read_stdin() -> str:
    """Read a text from stdin."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"The text on stdin is not UTF-8 (byte {error.start + 1}); convert it, for example with iconv."
        ) from None


class Text(click.types.StringParamType):
    """A text for a request; rejects bytes that are not UTF-8."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        if not is_text(text):
            self.fail("The text is not UTF-8.", param, ctx)
        return text


TEXT = Text()
