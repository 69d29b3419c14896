"""Options that select the server: `--url` and `--api-key`, their variables, or a local `up` that is running."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from bros_batch.client.server_url import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE, server_url

F = TypeVar("F", bound=Callable[..., Any])


def connection_options(command: F) -> F:
    """Add `--url` and `--api-key` to a command and pass it a `client` that is ready to use."""
    from functools import wraps

    @wraps(command)
    def with_client(*args: Any, url: str | None, api_key: str | None, **kwargs: Any) -> Any:
        from bros_batch.client.http_client import Client

        if url and not url.startswith(("http://", "https://")):
            raise click.UsageError(f"{url!r} is not a valid server URL; use a URL like http://host:8000.")
        with Client(server_url(url), api_key) as client:
            return command(client, *args, **kwargs)

    with_url = click.option(
        "--url",
        envvar=URL_VARIABLE,
        show_envvar=True,
        show_default=f"the local server, or {DEFAULT_URL}",
        help="URL of the bros-batch server.",
    )
    with_key = click.option("--api-key", envvar=KEY_VARIABLE, show_envvar=True, help="API key of the server.")
    return with_url(with_key(with_client))  # type: ignore[return-value]
