"""Queries about deliveries that Redis lost: which they may be, and back to pending with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from bros_batch.db.items import Finished, Outcome, finish_items
from bros_batch.db.job_control import lock_jobs
from bros_batch.db.states import ItemStatus
from bros_batch.db.tables import items


@dataclass(frozen=True, slots=True)
class Delivery:
    """A queued item as the sweep sees it."""

    item_id: int
    epoch: int
    job_id: str
    attempts: int
    model: str


def old_deliveries(connection: Connection, queued_before: float, after_id: int, limit: int) -> list[Delivery]:
    """Items queued since before a time, by id."""
    rows = connection.execute(
        text(
            "SELECT items.id, items.epoch, items.job_id, items.attempts, jobs.model "
            "FROM items JOIN jobs ON jobs.id = items.job_id "
            "WHERE items.status = 'queued' AND items.queued_at < :before AND items.id > :after "
            "ORDER BY items.id LIMIT :limit"
        ),
        {"before": queued_before, "after": after_id, "limit": limit},
    )
    return [Delivery(*row) for row in rows]


def return_lost(
    connection: Connection, lost: Sequence[Delivery], max_attempts: int, now_s: float
) -> Finished:
    """Items whose deliveries are gone: back to pending with one more attempt, or, at the limit, failed with
    `engine_lost`. As ever, only where the delivery is still the item's."""
    lock_jobs(connection, [delivery.job_id for delivery in lost])
    given_up = [delivery for delivery in lost if delivery.attempts + 1 >= max_attempts]
    again = [delivery for delivery in lost if delivery.attempts + 1 < max_attempts]
    if again:
        connection.execute(
            text(
                "UPDATE items SET status = 'pending', attempts = attempts + 1, queued_at = NULL "
                "WHERE id = :id AND epoch = :epoch AND status = 'queued'"
            ),
            [{"id": delivery.item_id, "epoch": delivery.epoch} for delivery in again],
        )
    if not given_up:
        return Finished(0, [])
    connection.execute(
        text(
            "UPDATE items SET attempts = attempts + 1 WHERE id = :id AND epoch = :epoch AND status = 'queued'"
        ),
        [{"id": delivery.item_id, "epoch": delivery.epoch} for delivery in given_up],
    )
    message = f"The engine was lost {max_attempts} times while it had this line."
    outcomes = [
        Outcome(
            delivery.item_id,
            delivery.epoch,
            delivery.job_id,
            ItemStatus.FAILED,
            error_code="engine_lost",
            error_message=message,
        )
        for delivery in given_up
    ]
    return finish_items(connection, outcomes, now_s)


def return_all_queued(connection: Connection) -> int:
    """All deliveries are gone, with the Redis that held them: back to pending, and nobody's attempt."""
    query = text("SELECT DISTINCT job_id FROM items WHERE status = 'queued'")
    lock_jobs(connection, list(connection.scalars(query)))
    return connection.execute(
        text("UPDATE items SET status = 'pending', queued_at = NULL WHERE status = 'queued'")
    ).rowcount


def ended_items(connection: Connection, job_id: str, item_ids: Sequence[int]) -> set[int]:
    """Which of these items are the job's and have ended."""
    found: set[int] = set()
    for start in range(0, len(item_ids), 500):
        query = select(items.c.id).where(
            items.c.id.in_(item_ids[start : start + 500]),
            items.c.job_id == job_id,
            items.c.status.not_in(["pending", "queued"]),
        )
        found.update(connection.scalars(query))
    return found
