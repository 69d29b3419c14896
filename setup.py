"""What pyproject.toml cannot say: with BROS_COMPILE=1 the scheduler, the engine's loop and the simulator are compiled.

They are plain Python either way. Compiled by mypyc they take about half the time; that needs mypy, a C compiler and
Python's headers. See CONTRIBUTING.md.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import setup

FOLDERS = ("engine/core", "engine/sim")
FILES = ("engine/loop.py", "engine/metrics.py")


def extensions() -> list[object]:
    """None, unless asked for."""
    if os.environ.get("BROS_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    files = [
        str(path) for folder in FOLDERS for path in Path(folder).rglob("*.py") if path.stem != "__init__"
    ]
    return list(mypycify(["--config-file=", *sorted(files), *FILES]))


setup(ext_modules=extensions())
