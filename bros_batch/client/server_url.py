"""Which server the command line and Python use if none is named."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "BROS_URL"
KEY_VARIABLE = "BROS_API_KEY"


def server_url(url: str | None) -> str:
    """Return this URL, or else that in BROS_URL, or else that of the local server, or else DEFAULT_URL."""
    return url or os.environ.get(URL_VARIABLE) or local_url() or DEFAULT_URL


def where_it_runs(url: str) -> str:
    """Return the sentence about how to reach a server, for somebody who has named one that does not respond."""
    from bros_batch.up.known_data_dirs import running_services

    found = running_services()
    for state in found:
        if state.url == url:
            now = "does not respond at the moment" if state.ready else "is starting"
            return f"It {now}; `bros-batch doctor --data-dir {state.data_dir}` says more."
    if not found:
        return f"Start it with `bros-batch up`, or set another address with {URL_VARIABLE}."
    places = " and ".join(f"{state.url} (data directory {state.data_dir})" for state in found[:3])
    return f"It runs at {places}: export {URL_VARIABLE}={found[0].url}"


def local_url() -> str | None:
    """Return the URL of an `up` that runs on ./bros-data (or BROS_DATA_DIR), if this user owns that directory."""
    from bros_batch.up.lock import read_state

    data_dir = Path(os.environ.get("BROS_DATA_DIR", "bros-data"))
    try:
        if data_dir.stat().st_uid != os.getuid():
            return None
    except OSError:
        return None
    state = read_state(data_dir)
    return state.url if state is not None else None
