"""Queries that take pending items and mark them as queued.

Item statuses are literals here: a planner that sees a parameter cannot know that a partial index covers it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, text

from bros_batch.db.connections import is_postgres
from bros_batch.db.states import JobStatus
from bros_batch.db.tables import jobs

RUNNABLE_JOBS = 16

_HAS_PENDING = "EXISTS (SELECT 1 FROM items WHERE items.job_id = jobs.id AND items.status = 'pending')"

_CLAIM = """
UPDATE items SET status = 'queued', epoch = epoch + 1, queued_at = :now
WHERE id IN (
    SELECT id FROM items WHERE job_id = :job_id AND status = 'pending' ORDER BY line_no LIMIT :limit {skip_locked}
)
RETURNING id, epoch, line_no, body
"""

_RELEASE = text(
    "UPDATE items SET status = 'pending', queued_at = NULL WHERE id = :id AND epoch = :epoch AND status = 'queued'"
)


@dataclass(frozen=True, slots=True)
class RunnableJob:
    """What prepare needs to know about a job."""

    id: str
    endpoint: str
    model: str
    priority: int
    deadline_at: float | None
    ingest_form: str | None
    ingest_offset: int
    ingest_line: int
    defaults: dict[str, Any]


@dataclass(frozen=True, slots=True)
class QueuedItem:
    """An item that has just become queued, under this epoch."""

    id: int
    epoch: int
    line_no: int
    body: str


def models_with_work(connection: Connection) -> list[str]:
    """Models of running jobs that have pending items."""
    query = select(jobs.c.model).distinct().where(jobs.c.status == JobStatus.IN_PROGRESS, text(_HAS_PENDING))
    return list(connection.scalars(query))


def runnable_jobs(connection: Connection, model: str) -> list[RunnableJob]:
    """The most urgent running jobs of a model that have pending items: by priority, then deadline, then age."""
    query = (
        select(*(jobs.c[name] for name in RunnableJob.__slots__))
        .where(jobs.c.status == JobStatus.IN_PROGRESS, jobs.c.model == model, text(_HAS_PENDING))
        .order_by(jobs.c.priority.desc(), jobs.c.deadline_at.asc().nulls_last(), jobs.c.created_at, jobs.c.id)
        .limit(RUNNABLE_JOBS)
    )
    return [RunnableJob(*row) for row in connection.execute(query)]


def claim_items(connection: Connection, job_id: str, limit: int, now_s: float) -> list[QueuedItem]:
    """Mark up to `limit` pending items of a job as queued, first lines first, and return them.

    Two callers never get the same item: each skips what the other has locked (and SQLite has one writer at a time).
    """
    skip_locked = "FOR UPDATE SKIP LOCKED" if is_postgres(connection) else ""
    rows = connection.execute(
        text(_CLAIM.format(skip_locked=skip_locked)), {"job_id": job_id, "limit": limit, "now": now_s}
    )
    return sorted((QueuedItem(*row) for row in rows), key=lambda item: item.line_no)


def release_items(connection: Connection, claimed: Iterable[QueuedItem]) -> None:
    """Return items that were never put into the stream to pending. This uses up their epoch, but no attempt."""
    rows = [{"id": item.id, "epoch": item.epoch} for item in claimed]
    if rows:
        connection.execute(_RELEASE, rows)
