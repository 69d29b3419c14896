"""The limits of a key on bulk: how many jobs, and how many of their rows, may be unfinished at a time.

A response in the background is a row without a job.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, case, func, select, text
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bros_batch.db.connections import is_postgres
from bros_batch.db.jobs import HAS_FILE
from bros_batch.db.states import ENDED_JOB, JobStatus
from bros_batch.db.table_rows import File
from bros_batch.db.tables import jobs
from bros_batch.documents.input_lines import num_lines
from bros_batch.documents.job_file import unfinished_rows
from bros_batch.web.app_state import app_state
from bros_batch.web.errors import ApiError
from bros_batch.web.owners import key_of

RETRY_AFTER_S = 10.0
_UNENDED = sorted(frozenset(JobStatus) - ENDED_JOB)


async def announced_rows(request: Request, file: File, *, is_exported: bool = False) -> int:
    """The rows that the file of a new job has, as far as a limit of the request's key asks for them. Of an exported
    job, those that are unfinished count."""
    key = key_of(request)
    if key is None or key.terms.max_queued_items is None:
        return 0
    enough, max_bytes = key.terms.max_queued_items + 1, app_state(request).settings.max_line_bytes

    def count() -> int:
        try:
            with Path(file.path).open("rb") as source:
                return unfinished_rows(source) if is_exported else num_lines(source, max_bytes, enough)
        except OSError:
            return 0  # ingest says what is wrong with the file

    return await run_in_threadpool(count)


def check_bulk_limits(
    connection: Connection, request: Request, rows: int, *, noun: str = "job", is_job: bool = True
) -> None:
    """Raise ApiError 429 if so many more rows, or one more job, are too much for the key of a request, with what its
    owner has.

    Others that create something for this owner wait until the transaction has ended.
    """
    key = key_of(request)
    if key is None or (key.terms.max_jobs is None and key.terms.max_queued_items is None):
        return
    owner, max_jobs, max_rows = key.terms.owner, key.terms.max_jobs, key.terms.max_queued_items
    if is_postgres(connection):
        lock = text("SELECT pg_advisory_xact_lock(hashtext(:name))")
        connection.execute(lock, {"name": f"bulk limits {owner}"})
    mine = (jobs.c.owner == owner, jobs.c.status.in_(_UNENDED))
    if max_jobs is not None and is_job:
        count = connection.scalar(select(func.count()).select_from(jobs).where(*mine, HAS_FILE)) or 0
        if count >= max_jobs:
            message = (
                f"This API key may have {max_jobs:,} unfinished jobs, and its owner has {count:,}. Submit this one "
                "when one of them has ended, or cancel one."
            )
            raise ApiError(429, message, code="too_many_jobs", retry_after_s=RETRY_AFTER_S)
    if max_rows is None:
        return
    left = jobs.c.total - jobs.c.succeeded - jobs.c.failed - jobs.c.cancelled - jobs.c.expired
    is_unread = (jobs.c.status == JobStatus.VALIDATING) & (jobs.c.announced_rows > left)
    unended = func.sum(case((is_unread, jobs.c.announced_rows), else_=left))
    unfinished = int(connection.scalar(select(func.coalesce(unended, 0)).where(*mine)) or 0)
    if unfinished + rows > max_rows:
        fewer = "Divide the file" if noun == "job" else "Name fewer rows"
        advice = "Wait until some of them are done" if unfinished else fewer
        message = (
            f"This API key may have {max_rows:,} unfinished rows. Its owner has {unfinished:,}, and this {noun} has "
            f"{'more than that' if rows > max_rows else format(rows, ',')}. {advice}, and try again."
        )
        raise ApiError(429, message, code="too_many_queued_items", retry_after_s=RETRY_AFTER_S)
