"""`bros-batch engine`, `worker`, `beat` and `web`: this process becomes one service. For compose and Kubernetes."""

from __future__ import annotations

import os
from typing import Any

import click

from cli.configuration import load_settings, settings_options

PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def _become(command: list[str], env: dict[str, str]) -> None:
    """Replace this process, so that signals reach the service itself."""
    os.execve(command[0], command, env)


@click.command(context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def engine(arguments: tuple[str, ...]) -> None:
    """Run the engine. ARGUMENTS are the engine's own; what they leave out comes from the settings."""
    from bros_batch.up.service_commands import engine_command, environment

    settings = load_settings()
    _become(engine_command(settings, arguments), environment(settings))


@click.command()
@click.option("--concurrency", "--workers", type=click.IntRange(1), default=2, show_default=True)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(concurrency: int, arguments: tuple[str, ...]) -> None:
    """Run the worker. After --, ARGUMENTS go to `celery worker`."""
    from bros_batch.up.service_commands import environment, worker_command

    _become(worker_command(concurrency, arguments), environment(load_settings()))


@click.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def beat(arguments: tuple[str, ...]) -> None:
    """Run the clock that wakes the worker; one is enough. After --, ARGUMENTS go to `celery beat`."""
    from bros_batch.up.service_commands import beat_command, environment

    settings = load_settings()
    (settings.data_dir / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    _become(beat_command(settings, arguments), environment(settings))


@click.command()
@settings_options("host", "port", "api_key", "insecure")
def web(**flags: Any) -> None:
    """Run the API and the dashboard."""
    from bros_batch.up.preflight import check_exposure
    from bros_batch.up.service_commands import environment, web_command

    settings = load_settings(**flags)
    check_exposure(settings)
    _become(web_command(), environment(settings))
