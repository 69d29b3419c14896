"""Where the service is: flags, environment, or the `up` that runs on this directory's data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

DEFAULT_URL = "http://127.0.0.1:8000"
F = TypeVar("F", bound=Callable[..., Any])


def service_options(command: F) -> F:
    """`--url` and `--api-key`; the command gets a ready `client`."""
    from functools import wraps

    @wraps(command)
    def with_client(*args: Any, url: str | None, api_key: str | None, **kwargs: Any) -> Any:
        from bros_batch.client.http_client import Client

        if url and not url.startswith(("http://", "https://")):
            raise click.UsageError(f"{url!r} is no URL of a service; it should be like http://host:8000.")
        with Client(url or local_url() or DEFAULT_URL, api_key) as client:
            return command(client, *args, **kwargs)

    with_url = click.option("--url", envvar="BROS_URL", help=f"The service  [BROS_URL; {DEFAULT_URL}]")
    with_key = click.option("--api-key", envvar="BROS_API_KEY", help="Its key  [BROS_API_KEY]")
    return with_url(with_key(with_client))  # type: ignore[return-value]


def local_url() -> str | None:
    """The URL of the `up` that runs on ./bros-data (or BROS_DATA_DIR), if one does and it is this user's."""
    from bros_batch.up.lock import read_state

    data_dir = Path(os.environ.get("BROS_DATA_DIR", "bros-data"))
    try:
        if data_dir.stat().st_uid != os.getuid():
            return None
    except OSError:
        return None
    state = read_state(data_dir)
    return state.url if state is not None else None
