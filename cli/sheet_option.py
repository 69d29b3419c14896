"""The option `--sheet`: the sheet of a workbook that is read."""

from __future__ import annotations

import click

from cli.text_options import TEXT

sheet_option = click.option(
    "--sheet",
    type=TEXT,
    show_default="the first with more than one row and the prompt's columns",
    help="Sheet of a workbook to read.",
)
