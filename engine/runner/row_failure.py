"""The failure of single rows: which errors are put down to a request, and what its owner is told."""

from __future__ import annotations

import logging
import traceback

log = logging.getLogger("engine.runner")

# Errors that are about the process. All others may come from what one request asks for, including the panics of Rust
# libraries, which are no subclasses of Exception.
_NOT_OF_A_ROW = (KeyboardInterrupt, SystemExit, GeneratorExit)
_known: set[tuple[str, int]] = set()  # places in the code whose errors were logged


def row_failure(error: BaseException) -> str:
    """Why a row failed, given the error that it raised. Raises the error if it is not about rows.

    The first error of each place in the code is logged with its traceback.
    """
    if isinstance(error, _NOT_OF_A_ROW):
        raise error
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = (last.filename, last.lineno or 0)
    if place not in _known:
        _known.add(place)
        log.error(
            "a step raised an error; its rows are computed apart to find out whose it is", exc_info=error
        )
    text = str(error).strip().split("\n")[0][:200]
    return f"the engine could not compute this request ({type(error).__name__}: {text})"
