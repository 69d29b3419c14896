"""Queries that take pending items and mark them as queued.

Item statuses are literals here: a planner that sees a parameter cannot know that a partial index covers it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, text

from bros_batch.db.connections import is_postgres
from bros_batch.db.states import JobStatus
from bros_batch.db.tables import jobs

RUNNABLE_JOBS = 16
# Of the job of a background response that runs as a chat: ahead of all others.
AS_CHAT_PRIORITY = 1_000_000

_HAS_PENDING = "EXISTS (SELECT 1 FROM items WHERE items.job_id = jobs.id AND items.status = 'pending')"
HAS_QUEUED = "EXISTS (SELECT 1 FROM items WHERE items.job_id = jobs.id AND items.status = 'queued')"

_CLAIM = """
UPDATE items SET status = 'queued', epoch = epoch + 1, queued_at = :now
WHERE id IN (
    SELECT id FROM items WHERE job_id = :job_id AND status = 'pending' AND {attempts}
    AND (source_id IS NULL OR source_id = id)
    ORDER BY line_no LIMIT :limit {skip_locked}
)
RETURNING id, epoch, line_no, body, source_id
"""

_RELEASE = text(
    "UPDATE items SET status = 'pending', queued_at = NULL WHERE id = :id AND epoch = :epoch AND status = 'queued'"
)
_RELEASE_JOB = text(
    "UPDATE items SET status = 'pending', queued_at = NULL WHERE job_id = :job_id AND status = 'queued'"
)
_RENEW = text("UPDATE items SET queued_at = :now WHERE id = :id AND epoch = :epoch AND status = 'queued'")


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
    input_file_id: str
    fresh: bool
    owner: str

    @property
    def runs_as_chat(self) -> bool:
        """Whether its item is a background response that does not wait for its turn as bulk."""
        return not self.input_file_id and self.priority == AS_CHAT_PRIORITY

    @property
    def urgency(self) -> tuple[float, float]:
        return urgency(self.priority, self.deadline_at)


@dataclass(frozen=True, slots=True)
class QueuedItem:
    """An item that has just become queued, under this epoch."""

    id: int
    epoch: int
    line_no: int
    body: str
    source_id: int | None


def urgency(priority: int, deadline_at: float | None) -> tuple[float, float]:
    """How urgent a job is: by priority, then by deadline. The most urgent has the smallest value."""
    return -priority, math.inf if deadline_at is None else deadline_at


def runnable_jobs(connection: Connection, model: str) -> list[RunnableJob]:
    """The most urgent running jobs of a model that have pending items: by priority, then deadline, then age."""
    query = (
        select(*(jobs.c[name] for name in RunnableJob.__slots__))
        .where(jobs.c.status == JobStatus.IN_PROGRESS, jobs.c.model == model, text(_HAS_PENDING))
        .order_by(jobs.c.priority.desc(), jobs.c.deadline_at.asc().nulls_last(), jobs.c.created_at, jobs.c.id)
        .limit(RUNNABLE_JOBS)
    )
    return [RunnableJob(*row) for row in connection.execute(query)]


def outranked_jobs(connection: Connection, model: str, runnable: Sequence[RunnableJob]) -> list[str]:
    """Running jobs with queued items that are less urgent than the first of `runnable`, if that has none queued."""
    if not runnable:
        return []
    first = runnable[0]
    query = select(jobs.c.id, jobs.c.priority, jobs.c.deadline_at).where(
        jobs.c.status == JobStatus.IN_PROGRESS, jobs.c.model == model, text(HAS_QUEUED)
    )
    queued = {row.id: urgency(row.priority, row.deadline_at) for row in connection.execute(query)}
    if first.id in queued:
        return []
    return [job_id for job_id, other in queued.items() if other > first.urgency]


def stopped_jobs(connection: Connection, job_ids: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """(id, model) of paused jobs that have queued items, among these jobs or all."""
    query = select(jobs.c.id, jobs.c.model).where(jobs.c.status == JobStatus.PAUSED)
    if job_ids is None:
        query = query.where(text(HAS_QUEUED))
    else:
        query = query.where(jobs.c.id.in_(job_ids))
    return [(row.id, row.model) for row in connection.execute(query)]


def claim_items(
    connection: Connection, job_id: str, limit: int, now_s: float, *, lost_before: bool = False
) -> list[QueuedItem]:
    """Mark up to `limit` pending items of a job as queued, first lines first, and return them. These are items that
    were never lost, or with `lost_before` only others. Items that wait for the answer of another one are left out.

    Two callers never get the same item: each skips what the other has locked (and SQLite has one writer at a time).
    """
    claim = _CLAIM.format(
        attempts="attempts > 0" if lost_before else "attempts = 0",
        skip_locked="FOR UPDATE SKIP LOCKED" if is_postgres(connection) else "",
    )
    rows = connection.execute(text(claim), {"job_id": job_id, "limit": limit, "now": now_s})
    return sorted((QueuedItem(*row) for row in rows), key=lambda item: item.line_no)


def renew_claims(
    connection: Connection, claimed: Iterable[tuple[int, int]], now_s: float
) -> set[tuple[int, int]]:
    """Those of these items, given as (id, epoch), that are still queued under their epoch; they count as queued now."""
    return {
        (item_id, epoch)
        for item_id, epoch in claimed
        if connection.execute(_RENEW, {"id": item_id, "epoch": epoch, "now": now_s}).rowcount
    }


def release_items(connection: Connection, claimed: Iterable[tuple[int, int]]) -> None:
    """Return items, given as (id, epoch), that are not in the stream to pending. This counts as no attempt.

    Until an item is claimed again, which starts the next epoch, a result of this epoch is still recorded.
    """
    rows = [{"id": item_id, "epoch": epoch} for item_id, epoch in claimed]
    if rows:
        connection.execute(_RELEASE, rows)


def release_job(connection: Connection, job_id: str) -> int:
    """As `release_items`, for all queued items of a job, whose row is locked. Returns how many there were."""
    return connection.execute(_RELEASE_JOB, {"job_id": job_id}).rowcount
