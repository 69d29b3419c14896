"""The option `--column`: columns to add, from which the schema of the answers and a part of the prompt are made."""

from __future__ import annotations

import click

from cli.text_options import TEXT

column_option = click.option(
    "--column",
    "columns",
    type=TEXT,
    multiple=True,
    metavar="NAME: TYPE, MEANING",
    help="Column to add; can be repeated. The type is text, number, integer, boolean, date, list, list of TYPE, or "
    "one of A|B|C; with ? behind it, a value may be missing. Type or meaning may be left out, such as "
    '"vendor: who issued it" or "total: number".',
)
