"""Queries about responses in the background, each of which is a job with one item and without files."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update

from bros_batch.db.jobs import new_job_id
from bros_batch.db.new_items import insert_items
from bros_batch.db.states import ENDED_ITEM, ENDED_JOB, JobStatus
from bros_batch.db.tables import items, jobs, responses
from bros_batch.documents.form import BATCH
from bros_batch.documents.new_item import NewItem

# A response that waits longer than that fails. It is also the deadline by which responses are ordered among the jobs of
# their priority: one that was sent earlier goes first, and all of them go before jobs without a deadline.
WINDOW_S = 24 * 3600.0
# Responses in the background that one API key may have waiting at a time; files are for more.
MAX_UNFINISHED = 10_000


def create_response_job(
    connection: Connection,
    *,
    endpoint: str,
    model: str,
    body: str,
    priority: int,
    now_s: float,
    owner: str = "",
) -> str:
    """Create the job of a response, ready to run, with its item. Returns the job's id."""
    job_id = new_job_id()
    connection.execute(
        insert(jobs).values(
            id=job_id,
            status=JobStatus.IN_PROGRESS.value,
            endpoint=endpoint,
            model=model,
            priority=priority,
            owner=owner,
            input_file_id="",
            defaults={},
            errors=[],
            total=1,
            completion_window="24h",
            deadline_at=now_s + WINDOW_S,
            created_at=now_s,
            expires_at=now_s + WINDOW_S,
            in_progress_at=now_s,
            ingest_form=BATCH,
            ingest_offset=len(body),
            ingest_line=1,
        )
    )
    insert_items(connection, job_id, [NewItem(1, None, body)], now_s)
    return job_id


def num_unfinished(connection: Connection, key_id: str) -> int:
    """Number of a key's responses in the background that have not ended."""
    query = select(func.count()).select_from(jobs.join(responses, responses.c.job_id == jobs.c.id))
    unended = sorted(frozenset(JobStatus) - ENDED_JOB)
    query = query.where(jobs.c.status.in_(unended), responses.c.key_id == key_id)
    return int(connection.scalar(query) or 0)


@dataclass(frozen=True, slots=True)
class EndedResponse:
    """A response in the background whose item has ended, and of which the webhook is to be told."""

    id: str
    item_status: str
    result: str | None
    ended_at: float
    num_notified: int


def due_notifications(connection: Connection, now_s: float, limit: int) -> list[EndedResponse]:
    """Responses that have ended and of which the webhook is to be told now."""
    columns = (responses.c.id, items.c.status, items.c.result, items.c.finished_at, responses.c.num_notified)
    query = select(*columns).select_from(responses.join(items, items.c.job_id == responses.c.job_id))
    query = query.where(responses.c.notify_at <= now_s, items.c.status.in_(sorted(ENDED_ITEM)))
    query = query.order_by(responses.c.notify_at).limit(limit)
    return [EndedResponse(*row) for row in connection.execute(query)]


def set_notified(connection: Connection, response_id: str, next_s: float | None) -> None:
    """Record that the webhook was told of a response, or (`next_s`) that it is to be told again at that time."""
    change = update(responses).where(responses.c.id == response_id)
    connection.execute(change.values(notify_at=next_s, num_notified=responses.c.num_notified + 1))
