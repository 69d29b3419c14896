"""Flags that are settings too: a flag wins over the environment, which wins over the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from bros_batch.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Callable[[F], F]] = {
    "model": click.option("--model", help="Directory, or name on the Hugging Face hub  [the demo model]"),
    "served_model_name": click.option("--served-model-name", help="What clients call it."),
    "max_model_len": click.option(
        "--max-model-len", type=click.IntRange(1), help="Longest request, in tokens."
    ),
    "data_dir": click.option(
        "--data-dir", type=click.Path(file_okay=False), help="Where all is kept  [bros-data]"
    ),
    "host": click.option("--host", help="Address to listen on  [127.0.0.1]"),
    "port": click.option(
        "--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 picks one  [8000]"
    ),
    "api_key": click.option("--api-key", help="Key that clients must give; better set BROS_API_KEY."),
    "insecure": click.option(
        "--insecure", is_flag=True, default=None, help="Let other machines in without a key."
    ),
}


def settings_options(*names: str) -> Callable[[F], F]:
    """The options for these settings, in this order in the help."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return decorate


def load_settings(**flags: Any) -> Settings:
    """The settings, with those flags that were given."""
    from bros_batch.settings import Settings

    return Settings(**{name: value for name, value in flags.items() if value is not None})
