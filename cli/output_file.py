"""The file that `-o` names: checked before the work starts, and complete once it appears."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import click

from bros_batch.client.output_file import check_writable, written_file
from cli.failure import USAGE_ERROR, Failure

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write to this file; - means stdout.",
)


# Names that promise a spreadsheet, which would get JSON lines.
UNWRITABLE = (".xls", ".xlsb", ".xlsm", ".ods")


def check_output(output: str | None) -> None:
    """Fail if the file cannot be written, so that this is known before the work and not after it."""
    if output is None or output == "-":
        return
    if output.lower().endswith(UNWRITABLE):
        raise Failure(
            f"Cannot write {output}: the only format of workbooks that is written is .xlsx.", USAGE_ERROR
        )
    try:
        check_writable(output)
    except OSError as error:
        raise Failure(f"Cannot write {output}: {error.strerror}.", USAGE_ERROR) from None


def check_not_input(output: str | None, source: IO[bytes] | IO[str], name: str) -> None:
    """Fail if the output is the file that is read, under whichever name: the results would replace it."""
    if output is None or output == "-":
        return
    try:
        read, written = os.fstat(source.fileno()), Path(output).stat()
    except OSError:  # no file yet, or an input that is none
        return
    if stat.S_ISREG(read.st_mode) and os.path.samestat(read, written):
        raise Failure(
            f"The results would replace {name}, which is the input; choose another file with -o.", USAGE_ERROR
        )


def write_lines(lines: Iterable[bytes], output: str | None) -> int:
    """Write lines to stdout, or to a file that appears only once it is complete. Returns the number of lines.

    Raises OSError, which names `output`, if it cannot be written.
    """
    with written_file(output) as file:
        return _write(lines, file)


def _write(lines: Iterable[bytes], file: IO[bytes]) -> int:
    count = 0
    for line in lines:
        file.write(line)
        count += 1
    return count
