"""Output of commands: only results go to stdout; notes go to stderr."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    """Print one JSON value: indented on a terminal, on one line into a pipe."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def program() -> str:
    """Return the command that runs bros-batch: its name if PATH has it, else its path next to this Python."""
    if shutil.which("bros-batch"):
        return "bros-batch"
    path = Path(sys.executable).parent / "bros-batch"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def counted(count: int, noun: str) -> str:
    """A number of things: `1 row`, `2 rows`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def note(message: str) -> None:
    """Print a message to stderr, where it does not mix with the data on stdout."""
    click.echo(message, err=True)
