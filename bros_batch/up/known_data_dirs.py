"""The data directories on which this user runs `up`, so that a command elsewhere can say where a service is."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from bros_batch.up.lock import UpState, read_state


def remember(data_dir: Path) -> None:
    """Note a data directory. Nothing depends on the note, so it may fail."""
    with contextlib.suppress(OSError, RuntimeError):
        note = _note_of(data_dir)
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        note.write_bytes(os.fsencode(data_dir.resolve()))


def forget(data_dir: Path) -> None:
    """Remove the note of a data directory."""
    with contextlib.suppress(OSError, RuntimeError):
        _note_of(data_dir).unlink(missing_ok=True)


def running_services() -> list[UpState]:
    """Return the states of the services that run on directories that were noted."""
    found = []
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        for note in sorted(_folder().iterdir()):
            data_dir = Path(os.fsdecode(note.read_bytes()))
            if not data_dir.is_dir():
                note.unlink(missing_ok=True)
            elif data_dir.stat().st_uid == os.getuid() and (state := read_state(data_dir)) is not None:
                found.append(state)
    return found


def _note_of(data_dir: Path) -> Path:
    return _folder() / hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]


def _folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "bros-batch" / "data-dirs"
