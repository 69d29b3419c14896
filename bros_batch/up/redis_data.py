"""The data directory of the private Redis: how to tell that Redis cannot load it, and how to put it aside.

Nothing in it is needed. The database knows what has to be done, and queues it again when Redis comes back empty.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

KEPT = 2  # directories put aside, of which the newest are kept

# What redis-server and valkey-server (6.2 to 8) write when the files that they load are damaged, cut short or missing.
_UNREADABLE = re.compile(
    r"reading the append only file|RDB (CRC|checksum)|Internal error in RDB|RDB ERROR DETECTED|Checking RDB file"
    r"|AOF manifest|Reading the manifest file|Unable to obtain the AOF file .*No such file|AOF file .* doesn't exist"
    r"|Short read or OOM loading DB|Wrong signature trying to load DB|Can't handle RDB format|rdb file reading failure"
    r"|Error reading the RDB preamble|Fatal error loading the DB|BUG REPORT (START|END)",
    re.IGNORECASE,
)
# Causes outside the files. Without its data Redis would fail as well, or the data are good.
_OTHER_CAUSE = re.compile(
    r"Permission denied|No space left|Disk quota exceeded|Read-only file system|Input/output error"
    r"|Cannot allocate memory|Out of memory allocating|Too many open files|Address already in use",
    re.IGNORECASE,
)


def is_unreadable(last_lines: Sequence[str]) -> bool:
    """Whether the last lines of a Redis that ended at its start say that it cannot read its data."""
    if any(_OTHER_CAUSE.search(line) for line in last_lines):
        return False
    return any(_UNREADABLE.search(line) for line in last_lines)


def put_aside(directory: Path) -> Path:
    """Rename the data directory and make an empty one in its place. Returns the new name. Raises OSError."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = directory.with_name(f"{directory.name}-unreadable-{stamp}")
    for number in range(1, 100):
        if not aside.exists():
            break
        aside = directory.with_name(f"{directory.name}-unreadable-{stamp}-{number}")
    directory.rename(aside)
    directory.mkdir(mode=0o700)
    older = sorted(directory.parent.glob(f"{directory.name}-unreadable-*"), key=lambda path: path.name)
    for path in older[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
    return aside
