"""Warnings that name the line of the user's program, whichever function of this package it has called."""

from __future__ import annotations

import sys
import warnings

PACKAGE = __name__.partition(".")[0]


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of something at the place outside of this package from which it was called."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level + 1)


def _is_inside(module: str) -> bool:
    # A reader that is a context manager is called by contextlib.
    return module.partition(".")[0] in (PACKAGE, "contextlib")
