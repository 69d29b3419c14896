"""Queries about queued items that Redis has lost: which may be, and how they return to pending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from bros_batch.db.connections import IDS_PER_QUERY
from bros_batch.db.item_results import FinishedItem, FinishResult, finish_items
from bros_batch.db.jobs import lock_jobs
from bros_batch.db.states import ItemStatus
from bros_batch.db.tables import items

_RETURN = text(
    "UPDATE items SET status = 'pending', attempts = attempts + 1, queued_at = NULL "
    "WHERE id = :id AND epoch = :epoch AND status = 'queued'"
)
_COUNT_ATTEMPT = text(
    "UPDATE items SET attempts = attempts + 1 WHERE id = :id AND epoch = :epoch AND status = 'queued'"
)


@dataclass(frozen=True, slots=True)
class LongQueuedItem:
    """An item that has been queued for long, and that may be lost."""

    id: int
    epoch: int
    job_id: str
    attempts: int
    model: str


def items_queued_long(
    connection: Connection, lost_after_s: float, now_s: float, after_id: int, limit: int
) -> list[LongQueuedItem]:
    """Items that have been queued for longer than `lost_after_s`, in the order of their ids.

    Those that seem to have been queued in the future are among them: the clock was set back since.
    """
    rows = connection.execute(
        text(
            "SELECT items.id, items.epoch, items.job_id, items.attempts, jobs.model "
            "FROM items JOIN jobs ON jobs.id = items.job_id "
            "WHERE items.status = 'queued' AND (items.queued_at < :before OR items.queued_at > :future) "
            "AND items.id > :after "
            "ORDER BY items.id LIMIT :limit"
        ),
        {
            "before": now_s - lost_after_s,
            "future": now_s + lost_after_s,
            "after": after_id,
            "limit": limit,
        },
    )
    return [LongQueuedItem(*row) for row in rows]


def return_lost(
    connection: Connection, lost: Sequence[LongQueuedItem], max_attempts: int, now_s: float
) -> FinishResult:
    """Return lost items to pending with one more attempt, or end them with `engine_lost` at the limit.

    An item whose result was recorded after the caller had read it was not lost, and does not count in what is returned.
    """
    lock_jobs(connection, [item.job_id for item in lost])
    lost = _still_queued(connection, lost)
    again = [item for item in lost if item.attempts + 1 < max_attempts]
    given_up = [item for item in lost if item.attempts + 1 >= max_attempts]
    if again:
        connection.execute(_RETURN, [{"id": item.id, "epoch": item.epoch} for item in again])
    if not given_up:
        return FinishResult(len(lost), [])
    connection.execute(_COUNT_ATTEMPT, [{"id": item.id, "epoch": item.epoch} for item in given_up])
    message = f"This line was lost {max_attempts} times: the engine or a worker ended while it had it."
    results = [
        FinishedItem(
            item.id,
            item.epoch,
            item.job_id,
            ItemStatus.FAILED,
            error_code="engine_lost",
            error_message=message,
        )
        for item in given_up
    ]
    return FinishResult(len(lost), finish_items(connection, results, now_s).finalizing)


def _still_queued(connection: Connection, candidates: Sequence[LongQueuedItem]) -> list[LongQueuedItem]:
    queued: set[tuple[int, int]] = set()
    for start in range(0, len(candidates), IDS_PER_QUERY):
        ids = [item.id for item in candidates[start : start + IDS_PER_QUERY]]
        query = select(items.c.id, items.c.epoch).where(items.c.id.in_(ids), items.c.status == "queued")
        queued.update((item_id, epoch) for item_id, epoch in connection.execute(query.with_for_update()))
    return [item for item in candidates if (item.id, item.epoch) in queued]


def return_all_queued(connection: Connection) -> int:
    """Return all queued items to pending, because the Redis that held them is gone. This counts as no attempt."""
    query = text("SELECT DISTINCT job_id FROM items WHERE status = 'queued'")
    lock_jobs(connection, list(connection.scalars(query)))
    return connection.execute(
        text("UPDATE items SET status = 'pending', queued_at = NULL WHERE status = 'queued'")
    ).rowcount
