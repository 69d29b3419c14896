"""Optional compilation: BROS_COMPILE=1 compiles the scheduler, the engine's loop and the simulator with mypyc.

All of them are plain Python, and run in about half the time when compiled. Compiling needs mypy, a C compiler and the
Python headers. See CONTRIBUTING.md. All other build settings are in pyproject.toml.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import setup

FOLDERS = ("engine/core", "engine/sim")
FILES = ("engine/launch_lead.py", "engine/loop.py", "engine/loop_messages.py", "engine/metrics.py")
# To compile the plot, mypy would read matplotlib and all that it imports, twenty times as much as our own modules.
PLAIN = ("__init__.py", "plot.py")


def extensions() -> list[object]:
    """The extension modules to build; an empty list unless BROS_COMPILE=1."""
    if os.environ.get("BROS_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    files = [str(path) for folder in FOLDERS for path in Path(folder).rglob("*.py") if path.name not in PLAIN]
    return list(
        mypycify(
            ["--config-file=", *sorted(files), *FILES],
            opt_level=os.environ.get("MYPYC_OPT_LEVEL", "3"),
            debug_level=os.environ.get("MYPYC_DEBUG_LEVEL", "1"),
        )
    )


setup(ext_modules=extensions())
