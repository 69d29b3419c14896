"""Options that select the server: `--url` and `--api-key`, their variables, or a local `up` that is running."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

DEFAULT_URL = "http://127.0.0.1:8000"
F = TypeVar("F", bound=Callable[..., Any])


def connection_options(command: F) -> F:
    """Add `--url` and `--api-key` to a command and pass it a `client` that is ready to use."""
    from functools import wraps

    @wraps(command)
    def with_client(*args: Any, url: str | None, api_key: str | None, **kwargs: Any) -> Any:
        from bros_batch.client.http_client import Client

        if url and not url.startswith(("http://", "https://")):
            raise click.UsageError(f"{url!r} is not a valid server URL; use a URL like http://host:8000.")
        with Client(url or local_url() or DEFAULT_URL, api_key) as client:
            return command(client, *args, **kwargs)

    with_url = click.option(
        "--url",
        envvar="BROS_URL",
        show_envvar=True,
        show_default=f"the local server, or {DEFAULT_URL}",
        help="URL of the bros-batch server.",
    )
    with_key = click.option(
        "--api-key", envvar="BROS_API_KEY", show_envvar=True, help="API key of the server."
    )
    return with_url(with_key(with_client))  # type: ignore[return-value]


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
