"""`bros-batch db upgrade`."""

from __future__ import annotations

import click

from cli.configuration import load_settings, settings_options


@click.group()
def db() -> None:
    """Look after the database."""


@db.command()
@settings_options("data_dir")
def upgrade(data_dir: str | None) -> None:
    """Bring the database's schema up to this version; makes the database where there is none."""
    from bros_batch.up.preflight import bring_database_up_to_date

    settings = load_settings(data_dir=data_dir)
    if not settings.database_url:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    bring_database_up_to_date(settings.resolved_database_url)
    click.echo("The database is up to date.", err=True)
