"""Command failures: one sentence on stderr and an exit code.

0  success        1  the work failed        2  usage error        3  the server cannot be reached
"""

from __future__ import annotations

from typing import IO, Any

import click

WORK_FAILED = 1
USAGE_ERROR = 2
UNREACHABLE = 3


class Failure(click.ClickException):
    """Ends the command with an error message and an exit code; an empty message ends it silently."""

    def __init__(self, message: str, exit_code: int = WORK_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        if self.message:
            click.echo(f"bros-batch: {self.message}", err=True)


def failure_of(error: Exception) -> Failure:
    """Turn any exception into a Failure.

    Exceptions are recognized by the names of their classes, so that no module is imported only to compare its classes.
    """
    kinds = {each.__name__ for each in type(error).__mro__}
    if "ServiceUnreachable" in kinds:
        return Failure(str(error), UNREACHABLE)
    if "ServiceError" in kinds:
        hint = "; set BROS_API_KEY or use --api-key" if getattr(error, "status", None) == 401 else ""
        return Failure(f"{str(error).rstrip('.')}{hint}.")
    if type(error) is LookupError or kinds & {"StartupError", "UnwritableTable"}:
        return Failure(str(error))
    if kinds & {"SettingsError", "UnreadableTable", "BadInput", "DamagedArchive"}:
        return Failure(str(error), USAGE_ERROR)
    if isinstance(error, OSError) and error.strerror:
        return Failure(f"{error.filename or 'System error'}: {error.strerror}.")
    return Failure(f"{type(error).__name__}: {error} (use `bros-batch --debug ...` to see the traceback)")
