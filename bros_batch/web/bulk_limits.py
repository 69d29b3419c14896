"""The limits of a key on bulk: how many jobs, and how many of their rows, may be unfinished at a time."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, func, select, text
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bros_batch.db.connections import is_postgres
from bros_batch.db.jobs import HAS_FILE
from bros_batch.db.states import ENDED_JOB, JobStatus
from bros_batch.db.tables import File, files, jobs
from bros_batch.web.errors import ApiError
from bros_batch.web.owners import key_of

READ_BYTES = 1024**2
RETRY_AFTER_S = 10.0
_UNENDED = sorted(frozenset(JobStatus) - ENDED_JOB)


async def num_rows(request: Request, file: File) -> int:
    """The lines of the file of a new job, as far as a limit of the request's key asks for them."""
    key = key_of(request)
    limit = None if key is None else key.terms.max_queued_items
    return 0 if limit is None else await run_in_threadpool(_num_lines, file.path, limit + 1)


def check_bulk_limits(connection: Connection, request: Request, rows: int) -> None:
    """Raise ApiError 429 if a job with so many rows is too much for the key of a request, with what its owner has.

    Others that create jobs of this owner wait until the transaction has ended.
    """
    key = key_of(request)
    if key is None or (key.terms.max_jobs is None and key.terms.max_queued_items is None):
        return
    owner, max_jobs, max_rows = key.terms.owner, key.terms.max_jobs, key.terms.max_queued_items
    if is_postgres(connection):
        lock = text("SELECT pg_advisory_xact_lock(hashtext(:name))")
        connection.execute(lock, {"name": f"bulk limits {owner}"})
    mine = (jobs.c.owner == owner, jobs.c.status.in_(_UNENDED), HAS_FILE)
    if max_jobs is not None:
        count = connection.scalar(select(func.count()).select_from(jobs).where(*mine)) or 0
        if count >= max_jobs:
            message = (
                f"This API key may have {max_jobs:,} unfinished jobs, and its owner has {count:,}. Submit this one "
                "when one of them has ended, or cancel one."
            )
            raise ApiError(429, message, code="too_many_jobs", retry_after_s=RETRY_AFTER_S)
    if max_rows is None:
        return
    left = jobs.c.total - jobs.c.succeeded - jobs.c.failed - jobs.c.cancelled - jobs.c.expired
    is_read = jobs.c.status != JobStatus.VALIDATING
    unfinished = int(connection.scalar(select(func.coalesce(func.sum(left), 0)).where(*mine, is_read)) or 0)
    unread = select(files.c.path).join(jobs, jobs.c.input_file_id == files.c.id).where(*mine, ~is_read)
    for path in connection.scalars(unread).all():
        unfinished += _num_lines(path, max_rows + 1)
    if unfinished + rows > max_rows:
        advice = "Wait until some of them are done" if unfinished else "Divide the file"
        message = (
            f"This API key may have {max_rows:,} unfinished rows. Its owner has {unfinished:,}, and this job has "
            f"{'more than that' if rows > max_rows else format(rows, ',')}. {advice}, and submit it again."
        )
        raise ApiError(429, message, code="too_many_queued_items", retry_after_s=RETRY_AFTER_S)


def _num_lines(path: str, enough: int) -> int:
    """The lines of a file, counted until there are enough."""
    count = 0
    last = b"\n"
    try:
        with Path(path).open("rb") as file:
            while count < enough and (part := file.read(READ_BYTES)):
                count += part.count(b"\n")
                last = part[-1:]
    except OSError:
        return 0  # ingest says what is wrong with the file
    return count + (last != b"\n")
