"""Queries about stored responses: create, read, continue and delete them, and find those that have expired.

The job and the item of a background response stay when it is deleted, as those of all jobs do, but without their texts.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, literal, select, text, update

from bros_batch.db.connections import IDS_PER_QUERY
from bros_batch.db.jobs import lock_jobs
from bros_batch.db.states import ENDED_JOB
from bros_batch.db.table_rows import StoredResponse
from bros_batch.db.tables import items, jobs, responses

# Of one API key. Beyond that, the oldest ones are deleted.
MAX_PER_KEY = 100_000
# Responses that one continues.
MAX_ANCESTORS = 1000
DELETED_AT_ONCE = 500

_COLUMNS = tuple(responses.c)
_COLUMNS_WITHOUT_INPUT = tuple(literal("") if column.name == "input" else column for column in _COLUMNS)
_ITEM_COLUMNS = (
    items.c.status,
    items.c.result,
    items.c.error_code,
    items.c.error_message,
    items.c.finished_at,
    items.c.id,
    items.c.epoch,
)
_CHAIN = text("""
WITH RECURSIVE chain AS (
    SELECT id, previous_id, 0 AS depth FROM responses WHERE id = :id
    UNION ALL
    SELECT r.id, r.previous_id, chain.depth + 1 FROM responses AS r JOIN chain ON r.id = chain.previous_id
    WHERE chain.depth < :most
)
SELECT id FROM chain ORDER BY depth DESC
""")


@dataclass(frozen=True, slots=True)
class BackgroundItem:
    """The item that a response in the background is."""

    status: str
    result: str | None
    error_code: str | None
    error_message: str | None
    finished_at: float | None
    id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class FoundResponse:
    """A stored response, with its item if it runs in the background."""

    row: StoredResponse
    item: BackgroundItem | None


def new_response_id() -> str:
    """A new id. Nobody can guess it: whoever has access to the service and the id can read the response."""
    return f"resp_{secrets.token_hex(24)}"


def create_response(connection: Connection, response: StoredResponse, ancestor_ids: Sequence[str]) -> None:
    """Store a response. Those that it continues are then kept as long as it is."""
    connection.execute(insert(responses), asdict(response))
    ids = list(ancestor_ids)
    for start in range(0, len(ids), IDS_PER_QUERY):
        part = responses.c.id.in_(ids[start : start + IDS_PER_QUERY])
        connection.execute(update(responses).where(part).values(expires_at=response.expires_at))


def find_response(
    connection: Connection, response_id: str, *, with_input: bool = False, owner: str | None = None
) -> FoundResponse | None:
    """A response; None if there is none, or if an owner is given and it is another's. Its input, which may have
    megabytes, is empty unless it is asked for."""
    found = _found(connection, [response_id], _COLUMNS if with_input else _COLUMNS_WITHOUT_INPUT)
    return found[0] if found and owner in (None, found[0].row.owner) else None


def conversation(connection: Connection, response_id: str) -> list[FoundResponse]:
    """A response and all that it continues, the oldest first; empty if it does not exist. If one of them was deleted,
    those before it are missing."""
    ids = connection.scalars(_CHAIN, {"id": response_id, "most": MAX_ANCESTORS}).all()
    found = {each.row.id: each for each in _found(connection, ids, _COLUMNS)}
    return [found[each] for each in ids if each in found]


def _found(
    connection: Connection, ids: Sequence[str], columns: Sequence[ColumnElement[Any]]
) -> list[FoundResponse]:
    query = select(*columns, *_ITEM_COLUMNS)
    query = query.select_from(responses.outerjoin(items, items.c.job_id == responses.c.job_id))
    found = []
    for start in range(0, len(ids), IDS_PER_QUERY):
        part = query.where(responses.c.id.in_(ids[start : start + IDS_PER_QUERY]))
        for values in connection.execute(part):
            row = StoredResponse(*values[: len(columns)])
            item = BackgroundItem(*values[len(columns) :]) if row.job_id is not None else None
            found.append(FoundResponse(row, item))
    return found


def delete_responses(connection: Connection, ids: Sequence[str]) -> int:
    """Delete responses, and the texts of those in the background, whose jobs have ended. Returns how many they were."""
    if not ids:
        return 0
    query = select(responses.c.job_id).where(responses.c.id.in_(ids), responses.c.job_id.is_not(None))
    job_ids = list(connection.scalars(query))
    lock_jobs(connection, job_ids)
    connection.execute(update(items).where(items.c.job_id.in_(job_ids)).values(body=None, result=None))
    return int(connection.execute(delete(responses).where(responses.c.id.in_(ids))).rowcount)


def removable_responses(connection: Connection, now_s: float, most_per_key: int = MAX_PER_KEY) -> list[str]:
    """Ids of responses that have expired, or that are the oldest ones of a key which has too many.

    Those in the background that have not ended are not among them.
    """
    query = select(responses.c.id).select_from(responses.outerjoin(jobs, jobs.c.id == responses.c.job_id))
    query = query.where(responses.c.job_id.is_(None) | jobs.c.status.in_(sorted(ENDED_JOB)))
    query = query.order_by(responses.c.created_at).limit(DELETED_AT_ONCE)
    found = list(connection.scalars(query.where(responses.c.expires_at < now_s)))
    counts = select(responses.c.key_id, func.count()).group_by(responses.c.key_id)
    for key_id, count in connection.execute(counts.having(func.count() > most_per_key)).all():
        surplus = query.where(responses.c.key_id == key_id).limit(min(count - most_per_key, DELETED_AT_ONCE))
        found += connection.scalars(surplus)
    return list(dict.fromkeys(found))[:DELETED_AT_ONCE]
