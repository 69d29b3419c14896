"""The option `--schema`: a file with a JSON schema, or a pydantic model that is imported."""

from __future__ import annotations

import click

schema_option = click.option(
    "--schema",
    metavar="FILE|MODULE:MODEL",
    help="JSON schema that every answer follows: a file, or a pydantic model of a module in the current directory.",
)
