"""How a command fails: one sentence on stderr and an exit code.

0  it worked        1  the work failed        2  used wrongly        3  the service cannot be reached
"""

from __future__ import annotations

from typing import IO, Any

import click

WORK_FAILED = 1
USED_WRONGLY = 2
UNREACHABLE = 3


class Failure(click.ClickException):
    """Ends the command with `message` and `exit_code`; an empty message ends it silently."""

    def __init__(self, message: str, exit_code: int = WORK_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        if self.message:
            click.echo(f"bros-batch: {self.message}", err=True)


def explained(error: Exception) -> Failure:
    """Any exception as one sentence. Modules that cannot have raised it are not imported to find out."""
    kind = type(error).__name__
    if kind == "ServiceUnreachable":
        return Failure(str(error), UNREACHABLE)
    if kind == "ServiceError":
        hint = "; set BROS_API_KEY or give --api-key" if getattr(error, "status", None) == 401 else ""
        return Failure(f"{str(error).rstrip('.')}{hint}.")
    if kind in ("Refused", "LookupError"):
        return Failure(str(error))
    if kind == "ValidationError" and hasattr(error, "errors"):
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        return Failure(f"The setting BROS_{name} is wrong: {first['msg']}.", USED_WRONGLY)
    if isinstance(error, OSError) and error.strerror:
        return Failure(f"{error.filename or 'The system'}: {error.strerror}.")
    return Failure(f"{kind}: {error} (`bros-batch --debug ...` shows where)")
