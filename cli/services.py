"""`bros-batch engine`, `worker`, `beat` and `web`: run one service, for Docker Compose and Kubernetes."""

from __future__ import annotations

import os
from typing import Any

import click

from cli.settings_options import load_settings, settings_options

PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def _become(command: list[str], env: dict[str, str]) -> None:
    """Replace this process, so that signals reach the service itself."""
    os.execve(command[0], command, env)


@click.command(context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def engine(arguments: tuple[str, ...]) -> None:
    """Run the engine, which computes tokens. ARGUMENTS are engine flags and override the settings."""
    from bros_batch.up.service_commands import engine_command, environment

    settings = load_settings()
    _become(engine_command(settings, arguments), environment(settings))


@click.command()
@click.option(
    "--concurrency",
    "--workers",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Number of worker processes.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(concurrency: int, arguments: tuple[str, ...]) -> None:
    """Run the Celery worker, which prepares items and records results.

    ARGUMENTS after -- are passed to `celery worker`.
    """
    from bros_batch.up.service_commands import environment, worker_command

    _become(worker_command(concurrency, arguments), environment(load_settings()))


@click.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def beat(arguments: tuple[str, ...]) -> None:
    """Run Celery beat, which schedules periodic work for the workers. Run exactly one per installation.

    ARGUMENTS after -- are passed to `celery beat`.
    """
    from bros_batch.up.service_commands import beat_command, environment

    _become(beat_command(arguments), environment(load_settings()))


@click.command()
@settings_options("host", "port", "api_key", "insecure", "allowed_origins")
def web(**options: Any) -> None:
    """Run the web server with the API and the dashboard."""
    from bros_batch.up.preflight import check_exposure
    from bros_batch.up.service_commands import environment, web_command

    settings = load_settings(**options)
    check_exposure(settings)
    _become(web_command(), environment(settings))
