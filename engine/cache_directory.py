"""The directory for what can be made again: what was learned about a model, and models that were unpacked."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path | None:
    """bros-batch's part of the user's cache directory; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bros-batch"
    except RuntimeError:
        return None
