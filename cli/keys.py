"""`bros-batch keys`: create, list and revoke the API keys in the database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from bros_batch.client.plain_text import duration, safe
from cli.failure import Failure
from cli.output import json_option, note, print_json
from cli.settings_options import load_settings, settings_options

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from bros_batch.db.tables import ApiKey

MAX_NAME_CHARS = 64


@click.group()
def keys() -> None:
    """Create, list and revoke API keys.

    The commands change the database that the server uses. A running server knows of a change within two seconds. Once
    there is a key, the server needs one for every request, even if it has no BROS_API_KEY.
    """


@keys.command()
@settings_options("data_dir")
@json_option
@click.argument("name")
def create(name: str, as_json: bool, data_dir: str | None) -> None:
    """Create a key called NAME, and print it. It cannot be shown again."""
    from bros_batch.db.api_keys import create_api_key, list_api_keys
    from bros_batch.db.connections import writing

    if not name.strip() or not name.isprintable() or len(name) > MAX_NAME_CHARS:
        raise click.UsageError(f"NAME must have 1 to {MAX_NAME_CHARS} printable characters.")
    with _database(data_dir) as database, writing(database) as connection:
        is_first = True
        for each in list_api_keys(connection):
            if each.name == name and each.revoked_at is None:
                raise Failure(f"There is a key named {name!r} already, {each.id}; choose another name.")
            is_first = False
        key, secret = create_api_key(connection, name)
    if as_json:
        print_json({**_fields(key), "key": secret})
        return
    note(f"{key.id} was created. Keep the key: it cannot be shown again.")
    if is_first:
        note(
            "It is the first key: from now on, the server needs a key for every request, also from clients that "
            "needed none so far. A running server does so within two seconds."
        )
    click.echo(secret)


@keys.command("list")
@settings_options("data_dir")
@json_option
def list_keys(as_json: bool, data_dir: str | None) -> None:
    """List all keys, oldest first. The keys themselves are not stored."""
    from bros_batch.db.api_keys import list_api_keys
    from bros_batch.db.connections import reading

    with _database(data_dir) as database, reading(database) as connection:
        found = list_api_keys(connection)
    if as_json:
        print_json([_fields(key) for key in found])
        return
    if not found:
        note("No keys yet; use `bros-batch keys create NAME` to create one.")
        return
    rows = [("KEY", "NAME", "AGE", "STATUS"), *(_row(key) for key in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
@settings_options("data_dir")
@json_option
@click.argument("key")
def revoke(key: str, as_json: bool, data_dir: str | None) -> None:
    """Revoke KEY, an id or a name. Its sessions in browsers end too."""
    from bros_batch.db.api_keys import list_api_keys, revoke_api_key
    from bros_batch.db.connections import writing

    with _database(data_dir) as database, writing(database) as connection:
        found = [each for each in list_api_keys(connection) if key in (each.id, each.name)]
        valid = [each for each in found if each.revoked_at is None]
        if not valid:
            reason = "was revoked before" if found else "does not exist; `bros-batch keys list` lists all"
            raise Failure(f"The key {key!r} {reason}.")
        chosen = next((each for each in valid if each.id == key), valid[0])
        revoke_api_key(connection, chosen.id)
        left = list_api_keys(connection)
    (revoked,) = [each for each in left if each.id == chosen.id]
    if as_json:
        print_json(_fields(revoked))
        return
    note(f"{revoked.id} ({safe(revoked.name)}) was revoked. Running servers reject it within two seconds.")
    if all(each.revoked_at is not None for each in left):
        note(
            "No valid key is left, and the server stays closed: it accepts only its own BROS_API_KEY, if it has one. "
            "To let clients in again: bros-batch keys create NAME"
        )


@contextmanager
def _database(data_dir: str | None) -> Iterator[Engine]:
    """Open the database of the settings. It must exist: a key in a new one would be of no use."""
    from pathlib import Path

    from sqlalchemy import make_url

    from bros_batch.db.connections import open_database
    from bros_batch.db.schema import SchemaError, check_schema

    url = load_settings(data_dir=data_dir).resolved_database_url
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        raise Failure(
            f"There is no database at {parsed.database}. Start the server once, or name the directory of its data "
            "with --data-dir."
        )
    database = open_database(url)
    try:
        check_schema(database)
        yield database
    except SchemaError as error:
        raise Failure(f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    finally:
        database.dispose()


def _fields(key: ApiKey) -> dict[str, Any]:
    return {"id": key.id, "name": key.name, "created_at": key.created_at, "revoked_at": key.revoked_at}


def _row(key: ApiKey) -> tuple[str, ...]:
    return (
        key.id,
        safe(key.name),
        duration(time.time() - key.created_at),
        "valid" if key.revoked_at is None else "revoked",
    )
