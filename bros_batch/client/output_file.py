"""A file that is complete once it appears, for results."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def check_writable(output: str) -> None:
    """Raise OSError, with a reason for the user, if the file cannot be written."""
    try:
        path = _target(output)
        if path is not None:
            partial = _partial(path)
            partial.open("wb").close()
            partial.unlink()
    except OSError as error:
        raise OSError(error.errno, _place(output, error), output) from None


@contextlib.contextmanager
def written_file(output: str | None) -> Iterator[IO[bytes]]:
    """Open a file that appears under the name `output` once it is complete, or stdout.

    Raises OSError, which names `output`, if it cannot be written.
    """
    if output is None or output == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        path = _target(output)
        if path is None:
            with Path(output).open("wb") as file:
                yield file
            return
        partial = _partial(path)
        try:
            with partial.open("w+b") as file:
                yield file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, _place(output, error), output) from error


def parent_of(output: str | None) -> Path | None:
    """The directory of the file that is written, for what has to be beside it; None if it is not a regular file."""
    path = None if output in (None, "-") else _target(str(output))
    return None if path is None else path.parent


def _target(output: str) -> Path | None:
    """The file that is replaced, behind all links; None if the output is a device or a pipe, which must stay."""
    try:
        if not stat.S_ISREG(Path(output).stat().st_mode):
            return None
    except FileNotFoundError:
        pass
    return Path(os.path.realpath(output))


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _place(output: str, error: OSError) -> str:
    """The reason in words; it names the directory instead of the temporary file in it."""
    directory = Path(os.path.realpath(output)).parent
    if isinstance(error, FileNotFoundError):
        return f"the directory {directory} does not exist"
    if isinstance(error, NotADirectoryError):
        return f"{directory} is not a directory"
    if isinstance(error, PermissionError):
        return f"the directory {directory} does not allow it ({(error.strerror or '').lower()})"
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:]
