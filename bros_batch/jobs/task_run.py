"""What one run of a task did, and which tasks have to run next."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Progress(enum.Enum):
    """How a run ended: its work is done, its time budget was used up first, or another run holds the job."""

    DONE = "done"
    MORE = "more"
    NOT_OURS = "not ours"


@dataclass(frozen=True, slots=True)
class TaskRun:
    """The result of one run. The tasks to run next are given as job ids (ingest, finalize) or models (prepare)."""

    progress: Progress = Progress.DONE
    ingest: Sequence[str] = ()
    prepare: Sequence[str] = ()
    finalize: Sequence[str] = ()

    queued: int = 0  # items put into a stream
    failed: int = 0  # items that could not be prepared
    reused: int = 0  # items that took the answers of others
    changed: int = 0  # items that ended with a recorded result
    returned: int = 0  # items returned to pending because Redis came back empty
    lost: int = 0  # items that were queued but in no stream
    files: int = 0  # files removed
