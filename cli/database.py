"""`bros-batch db`: create and upgrade the database."""

from __future__ import annotations

import click

from cli.settings_options import load_settings, settings_options


@click.group()
def db() -> None:
    """Create or upgrade the database."""


@db.command(short_help="Upgrade the schema, or create the database.")
@settings_options("data_dir")
def upgrade(data_dir: str | None) -> None:
    """Upgrade the database schema to this version, or create the database if it does not exist."""
    from bros_batch.up.preflight import bring_database_up_to_date

    settings = load_settings(data_dir=data_dir)
    if not settings.database_url:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    bring_database_up_to_date(settings.resolved_database_url)
    click.echo("The database is up to date.", err=True)
