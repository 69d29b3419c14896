"""The first line of an error's message, for a sentence that gives it as a reason."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of the message that says anything, or the error's kind if the message is empty.

    The errors of a database driver come wrapped by SQLAlchemy, whose own message quotes the statement.
    """
    cause = getattr(error, "orig", None) or error
    message = str(cause).strip()
    return message.splitlines()[0] if message else type(cause).__name__
