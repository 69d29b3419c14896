"""Queries about answers that were computed before: find them by content key, store them, and let items wait for them.

An item that would compute what another one computes just now is *waiting*: pending, with that item as its source.
Nobody has to tell it when the other one is done. `release_waiting` lets go of all items whose source is not in hand any
more, whatever became of it, so nothing waits for an item that was lost, cancelled or removed.

Item statuses are literals here: a planner that sees a parameter cannot know that a partial index covers it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select, text

from bros_batch.db.connections import IDS_PER_QUERY, is_among, is_postgres
from bros_batch.db.packed_arrays import bigints, blobs, integers
from bros_batch.db.table_rows import ContentKey
from bros_batch.db.tables import content_keys, items

_WAITING = "status = 'pending' AND source_id IS NOT NULL AND source_id <> id"

# Those that wait for an item which failed compute their own answers, since the next of them might fail as well.
_RELEASE_WAITING = """
UPDATE items SET source_id = CASE
    WHEN EXISTS (SELECT 1 FROM items AS source WHERE source.id = items.source_id AND source.status = 'failed') THEN id
END
WHERE id IN (
    SELECT id FROM items AS waiting
    WHERE waiting.status = 'pending' AND waiting.source_id IS NOT NULL AND waiting.source_id <> waiting.id
    AND NOT EXISTS (
        SELECT 1 FROM items AS source WHERE source.id = waiting.source_id AND source.status = 'queued'
    )
    {skip_locked}
)
"""
_WAIT = text(
    "UPDATE items SET status = 'pending', queued_at = NULL, source_id = :source_id "
    "WHERE id = :id AND epoch = :epoch AND status = 'queued'"
)
_SET_SOURCE = text("UPDATE items SET source_id = :source_id WHERE id = :id")

_STORE = """
INSERT INTO content_keys (key, item_id, prompt_tokens, choices) {values}
ON CONFLICT (key) DO UPDATE SET item_id = excluded.item_id, prompt_tokens = excluded.prompt_tokens,
    choices = excluded.choices
"""
_STORE_SQLITE = _STORE.format(values="VALUES (?, ?, ?, ?)")
_STORE_POSTGRES = _STORE.format(
    values="SELECT * FROM unnest(%(keys)s::bytea[], %(items)s::bigint[], %(prompts)s::int[], %(choices)s::bytea[])"
)


def find_answers(connection: Connection, keys: Sequence[bytes]) -> dict[bytes, ContentKey]:
    """The answers to those of these keys that have one, and whose item still exists."""
    found: dict[bytes, ContentKey] = {}
    for start in range(0, len(keys), IDS_PER_QUERY):
        query = select(content_keys).where(
            is_among(connection, content_keys.c.key, keys[start : start + IDS_PER_QUERY]),
            items.c.id == content_keys.c.item_id,
        )
        found.update((row[0], ContentKey(*row)) for row in connection.execute(query))
    return found


def store_answers(connection: Connection, answers: Iterable[ContentKey]) -> None:
    """Store answers under their keys, in place of earlier ones."""
    # By key, so that two transactions which store the same keys do not wait for each other in a circle.
    rows = sorted({answer.key: answer for answer in answers}.values(), key=lambda answer: answer.key)
    if not rows:
        return
    if not is_postgres(connection):
        values = [(row.key, row.item_id, row.prompt_tokens, row.choices) for row in rows]
        connection.exec_driver_sql(_STORE_SQLITE, values)
        return
    columns: dict[str, Any] = {
        "keys": blobs([row.key for row in rows]),
        "items": bigints([row.item_id for row in rows]),
        "prompts": integers([row.prompt_tokens for row in rows]),
        "choices": blobs([row.choices for row in rows]),
    }
    connection.exec_driver_sql(_STORE_POSTGRES, columns)


def delete_answers(connection: Connection, job_id: str, last_row: int) -> None:
    """Delete what the rows of a job up to this one have computed, before the rows themselves are deleted."""
    rows = "SELECT id FROM items WHERE job_id = :job_id AND line_no <= :last"
    query = f"DELETE FROM content_keys WHERE item_id IN ({rows})"
    connection.execute(text(query), {"job_id": job_id, "last": last_row})


def items_in_hand(connection: Connection, item_ids: Collection[int]) -> set[int]:
    """Those of these items that are queued."""
    ids, queued = sorted(item_ids), items.c.status == "queued"
    found: set[int] = set()
    for start in range(0, len(ids), IDS_PER_QUERY):
        part = is_among(connection, items.c.id, ids[start : start + IDS_PER_QUERY])
        query = select(items.c.id).where(part, queued)
        found.update(connection.scalars(query))
    return found


def let_wait(connection: Connection, waiting: Iterable[tuple[int, int, int]]) -> None:
    """Let items, given as (id, epoch, id of the source), wait for the answers of others."""
    rows = [{"id": item, "epoch": epoch, "source_id": source} for item, epoch, source in sorted(waiting)]
    if rows:
        connection.execute(_WAIT, rows)


def count_waiting(connection: Connection) -> int:
    return int(connection.scalar(text(f"SELECT count(*) FROM items WHERE {_WAITING}")) or 0)


def release_waiting(connection: Connection) -> int:
    """Let go of items whose source is not in hand any more. Returns how many they were."""
    skip_locked = "FOR UPDATE SKIP LOCKED" if is_postgres(connection) else ""
    return connection.execute(text(_RELEASE_WAITING.format(skip_locked=skip_locked))).rowcount


def is_waited_for(connection: Connection, item_ids: Sequence[int]) -> bool:
    """Whether an item waits for one of these."""
    for start in range(0, len(item_ids), IDS_PER_QUERY):
        part = is_among(connection, items.c.source_id, item_ids[start : start + IDS_PER_QUERY])
        query = select(items.c.id).where(
            text("items.status = 'pending' AND items.source_id IS NOT NULL"), part
        )
        if connection.execute(query.limit(1)).first() is not None:
            return True
    return False


def set_sources(connection: Connection, sources: Iterable[tuple[int, int]]) -> None:
    """Note for items, given as (id, id of the source), whose answers they have taken."""
    rows = [{"id": item, "source_id": source} for item, source in sorted(sources)]
    if rows:
        connection.execute(_SET_SOURCE, rows)
