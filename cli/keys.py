"""`bros-batch keys`: create, list, change and revoke the API keys in the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import reduce
from typing import TYPE_CHECKING, Any

import click

from bros_batch.client.plain_text import duration, safe
from cli.failure import Failure
from cli.notify_option import WebhookUrl
from cli.output import json_option, note, print_json
from cli.settings_options import load_settings, settings_options

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from bros_batch.db.table_rows import ApiKey

MAX_NAME_CHARS = 64
MAX_LIMIT = 2**31 - 1
# By the name of a key's column: the heading of the list, and what the limit bounds.
LIMITS = {
    "requests_per_minute": ("REQ/MIN", "Chat requests per minute"),
    "tokens_per_minute": ("TOKENS/MIN", "Tokens of chat requests and their answers per minute"),
    "max_queued_items": ("MAX ROWS", "Rows of its owner's jobs that may be unfinished at a time"),
    "max_jobs": ("MAX JOBS", "Jobs of its owner that may be unfinished at a time"),
}
Command = Callable[..., Any]


class _Limit(click.ParamType):  # type: ignore[type-arg]
    """A number of at least 1, or `none` to remove the limit."""

    name = "number"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "N|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "none":
            return value
        number = int(value) if str(value).isascii() and str(value).isdecimal() and len(str(value)) < 11 else 0
        if not 1 <= number <= MAX_LIMIT:
            self.fail(f"{value!r} must be a whole number of at least 1, or none.", param, ctx)
        return number


def _terms_options(command: Command) -> Command:
    """The options for a key's weight and limits."""
    weight = click.option(
        "--weight",
        type=click.FloatRange(0.01, 1000),
        help="Share of bulk work of the key's owner, relative to that of others.  [default: 1]",
    )
    limits = [
        click.option(f"--{name.replace('_', '-')}", type=_Limit(), help=f"{help_text}.  [default: no limit]")
        for name, (_, help_text) in LIMITS.items()
    ]
    notify = click.option(
        "--notify",
        "notify_url",
        type=WebhookUrl(may_be_none=True),
        help="Webhook that is told when a job of this key has ended, unless the job names another.",
    )
    return reduce(lambda made, option: option(made), [notify, *reversed(limits), weight], command)


def _given(terms: dict[str, Any]) -> dict[str, Any]:
    """The terms that were given as options."""
    given = {name: value for name, value in terms.items() if value is not None}
    return {name: None if value == "none" else value for name, value in given.items()}


@click.group()
def keys() -> None:
    """Create, list, change and revoke API keys.

    The commands change the database that the server uses. A running server knows of a change within two seconds. Once
    there is a key, the server needs one for every request, even if it has no BROS_API_KEY.
    """


@keys.command()
@settings_options("data_dir")
@json_option
@click.option(
    "--owner",
    default="",
    help="Who uses the key: it sees only the files, jobs and responses of this owner. Without an owner, it sees all.",
)
@_terms_options
@click.argument("name")
def create(name: str, as_json: bool, data_dir: str | None, owner: str, **terms: Any) -> None:
    """Create a key called NAME, and print it. It cannot be shown again.

    Several keys may have the same owner. Owners share bulk work by weight: that of an owner's key with the highest one.
    """
    from bros_batch.db.api_keys import KeyTerms, create_api_key, list_api_keys
    from bros_batch.db.connections import writing

    if not name.strip() or not name.isprintable() or len(name) > MAX_NAME_CHARS:
        raise click.UsageError(f"NAME must have 1 to {MAX_NAME_CHARS} printable characters.")
    if owner != owner.strip() or not owner.isprintable() or len(owner) > MAX_NAME_CHARS:
        raise click.UsageError(f"--owner must have at most {MAX_NAME_CHARS} printable characters.")
    chosen = KeyTerms(owner, **_given(terms))
    with _database(data_dir) as database, writing(database) as connection:
        is_first = True
        for each in list_api_keys(connection):
            if each.name == name and each.revoked_at is None:
                raise Failure(f"There is a key named {name!r} already, {each.id}; choose another name.")
            is_first = False
        key, secret = create_api_key(connection, name, terms=chosen)
    if as_json:
        print_json({**_fields(key), **_notify_secret(key), "key": secret})
        return
    note(f"{key.id} was created. Keep the key: it cannot be shown again.")
    if is_first:
        note(
            "It is the first key: from now on, the server needs a key for every request, also from clients that "
            "needed none so far. A running server does so within two seconds."
        )
    _note_notify_secret(key)
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
    heads = tuple(heading for heading, _ in LIMITS.values())
    rows = [("KEY", "NAME", "OWNER", "AGE", "STATUS", "WEIGHT", *heads), *(_row(key) for key in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command("set")
@settings_options("data_dir")
@json_option
@_terms_options
@click.argument("key")
def set_terms(key: str, as_json: bool, data_dir: str | None, **terms: Any) -> None:
    """Change the weight, the limits or the webhook of KEY, an id or a name. The others stay as they are."""
    from bros_batch.db.api_keys import change_api_key, list_api_keys
    from bros_batch.db.connections import writing

    given = _given(terms)
    if not given:
        raise click.UsageError("Say what to change, such as --weight 2 or --max-jobs none.")
    with _database(data_dir) as database, writing(database) as connection:
        changed = change_api_key(connection, _valid_key(list_api_keys(connection), key), **given)
    shown = changed if "notify_url" in given else None
    if as_json:
        print_json({**_fields(changed), **_notify_secret(shown)})
        return
    note(f"{changed.id} ({safe(changed.name)}) was changed. Running servers follow within two seconds.")
    _note_notify_secret(shown)


@keys.command()
@settings_options("data_dir")
@json_option
@click.argument("key")
def revoke(key: str, as_json: bool, data_dir: str | None) -> None:
    """Revoke KEY, an id or a name. Its sessions in browsers end too."""
    from bros_batch.db.api_keys import list_api_keys, revoke_api_key
    from bros_batch.db.connections import writing

    with _database(data_dir) as database, writing(database) as connection:
        chosen = _valid_key(list_api_keys(connection), key)
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


def _valid_key(keys: list[ApiKey], wanted: str) -> ApiKey:
    """The key with an id or a name. Raises Failure unless there is a valid one."""
    found = [each for each in keys if wanted in (each.id, each.name)]
    valid = [each for each in found if each.revoked_at is None]
    if not valid:
        reason = "was revoked before" if found else "does not exist; `bros-batch keys list` lists all"
        raise Failure(f"The key {wanted!r} {reason}.")
    return next((each for each in valid if each.id == wanted), valid[0])


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
    return {name: value for name, value in asdict(key).items() if name not in ("sha256", "notify_secret")}


def _notify_secret(key: ApiKey | None) -> dict[str, str]:
    return {} if key is None or key.notify_secret is None else {"notify_secret": key.notify_secret}


def _note_notify_secret(key: ApiKey | None) -> None:
    for secret in _notify_secret(key).values():
        note(f"Webhook calls for its jobs are signed with this secret, which the receiver needs: {secret}")


def _row(key: ApiKey) -> tuple[str, ...]:
    return (
        key.id,
        safe(key.name),
        safe(key.owner) or "-",
        duration(time.time() - key.created_at),
        "valid" if key.revoked_at is None else "revoked",
        f"{key.weight:g}",
        *("-" if getattr(key, name) is None else f"{getattr(key, name):,}" for name in LIMITS),
    )
