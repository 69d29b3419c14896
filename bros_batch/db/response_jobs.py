"""Queries about responses in the background, each of which is a job with one item and without files."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select

from bros_batch.db.jobs import new_job_id
from bros_batch.db.new_items import insert_items
from bros_batch.db.states import ENDED_JOB, JobStatus
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
    notify_url: str | None = None,
    notify_key_id: str | None = None,
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
            notify_url=notify_url,
            notify_key_id=notify_key_id,
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


def item_body(connection: Connection, job_id: str) -> str | None:
    """The request of a response's item; None if it was deleted."""
    body: str | None = connection.scalar(select(items.c.body).where(items.c.job_id == job_id))
    return body


def num_unfinished(connection: Connection, key_id: str) -> int:
    """Number of a key's responses in the background that have not ended."""
    query = select(func.count()).select_from(jobs.join(responses, responses.c.job_id == jobs.c.id))
    unended = sorted(frozenset(JobStatus) - ENDED_JOB)
    query = query.where(jobs.c.status.in_(unended), responses.c.key_id == key_id)
    return int(connection.scalar(query) or 0)


@dataclass(frozen=True, slots=True)
class EndedResponse:
    """A response in the background whose item has ended."""

    id: str
    item_status: str
    result: str | None


def ended_response(connection: Connection, job_id: str) -> EndedResponse | None:
    """The response of a job that has ended; None if it was deleted."""
    query = select(responses.c.id, items.c.status, items.c.result)
    query = query.select_from(responses.join(items, items.c.job_id == responses.c.job_id))
    row = connection.execute(query.where(responses.c.job_id == job_id)).first()
    return EndedResponse(*row) if row else None
