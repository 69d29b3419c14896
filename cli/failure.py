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

    Exceptions are recognized by class name, so that no module is imported only to compare its classes.
    """
    kind = type(error).__name__
    if kind == "ServiceUnreachable":
        return Failure(str(error), UNREACHABLE)
    if kind == "ServiceError":
        hint = "; set BROS_API_KEY or use --api-key" if getattr(error, "status", None) == 401 else ""
        return Failure(f"{str(error).rstrip('.')}{hint}.")
    if kind in ("StartupError", "LookupError", "UnwritableTable"):
        return Failure(str(error))
    if kind in ("SettingsError", "UnreadableTable", "BadInput", "DamagedArchive"):
        return Failure(str(error), USAGE_ERROR)
    if isinstance(error, OSError) and error.strerror:
        return Failure(f"{error.filename or 'System error'}: {error.strerror}.")
    return Failure(f"{kind}: {error} (use `bros-batch --debug ...` to see the traceback)")
