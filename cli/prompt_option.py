r"""A prompt on the command line: a text with escapes such as `\n`, or `@FILE` for the text of a file as it is."""

from __future__ import annotations

from pathlib import Path

import click

from cli.escapes import unescaped
from cli.failure import USAGE_ERROR, Failure

# Where the context of a command keeps the files that its prompts come from.
FILES = "cli.prompt_option"


def prompt_text(context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Return the prompt that the value of an option stands for; used as its callback. `@@` begins a text with `@`."""
    if value is None or not value.startswith("@"):
        return None if value is None else unescaped(value)
    if value.startswith("@@"):
        return unescaped(value[1:])
    path = value[1:]
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = (
            "; a prompt that begins with @ is written with @@" if isinstance(error, FileNotFoundError) else ""
        )
        raise Failure(f"{path}: {error.strerror}{hint}.", USAGE_ERROR) from None
    except UnicodeDecodeError:
        raise Failure(f"{path} is not UTF-8 text.", USAGE_ERROR) from None
    context.meta.setdefault(FILES, []).append(path)
    return text.removesuffix("\n")
