"""Queries that remove the rows of jobs that ended long ago, or that take more room than the service has for them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select, text, update

from bros_batch.db import files as files_module
from bros_batch.db.content_keys import delete_answers
from bros_batch.db.jobs import HAS_FILE, lock_job
from bros_batch.db.states import ENDED_JOB
from bros_batch.db.table_rows import File
from bros_batch.db.tables import files, items, jobs

_ENDED_AT = func.coalesce(
    jobs.c.completed_at, jobs.c.failed_at, jobs.c.expired_at, jobs.c.cancelled_at, jobs.c.created_at
)
# The bytes of a job's rows, about: its input as it was read, and its output as it was written.
_SIZE = jobs.c.ingest_offset + jobs.c.written_output_bytes + jobs.c.written_error_bytes
# A removal that was interrupted is continued within this time.
UNFINISHED_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class RemovableJob:
    """A job that has ended, and how much is freed when its rows and its files are removed."""

    id: str
    size_bytes: int
    file_ids: tuple[str, ...]


def jobs_ended_before(connection: Connection, before_s: float, limit: int) -> list[str]:
    """Jobs whose rows are still there although they ended before this time, the oldest first.

    A job that came from another server after that time is not among them: its file is newer than its end.
    """
    is_new = exists().where(files.c.id == jobs.c.input_file_id, files.c.created_at >= before_s)
    query = select(jobs.c.id).where(_has_rows(), before_s > _ENDED_AT, ~is_new)
    query = query.order_by(_ENDED_AT).limit(limit)
    return list(connection.scalars(query))


def stored_bytes(connection: Connection) -> int:
    """The bytes of all files and of the rows of all jobs, about."""
    of_files = connection.scalar(select(func.coalesce(func.sum(files.c.bytes), 0)))
    of_rows = connection.scalar(
        select(func.coalesce(func.sum(_SIZE), 0)).where(jobs.c.rows_removed_at.is_(None))
    )
    return int(of_files or 0) + int(of_rows or 0)


def oldest_jobs(connection: Connection, limit: int) -> list[RemovableJob]:
    """The jobs that ended first and have rows, with the files that nothing else needs."""
    columns = (jobs.c.id, _SIZE, jobs.c.input_file_id, jobs.c.output_file_id, jobs.c.error_file_id)
    query = select(*columns).where(_has_rows()).order_by(_ENDED_AT).limit(limit)
    found = []
    for job_id, size, *file_ids in connection.execute(query):
        kept = [
            file_id for file_id in file_ids if file_id and not files_module.file_in_use(connection, file_id)
        ]
        sizes = connection.scalar(select(func.sum(files.c.bytes)).where(files.c.id.in_(kept))) if kept else 0
        found.append(RemovableJob(job_id, int(size) + int(sizes or 0), tuple(kept)))
    return found


def begin_removal(connection: Connection, job_id: str, now_s: float | None = None) -> bool:
    """Record that a job's rows are gone, so that nobody reads or reruns a part of them. False if it runs again."""
    job = lock_job(connection, job_id)
    if job.status not in ENDED_JOB:
        return False
    now_s = time.time() if now_s is None else now_s
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(rows_removed_at=now_s))
    return True


def unfinished_removals(connection: Connection, now_s: float) -> list[str]:
    """Jobs whose removal has begun and of which rows are left."""
    has_items = exists().where(items.c.job_id == jobs.c.id)
    query = select(jobs.c.id).where(jobs.c.rows_removed_at > now_s - UNFINISHED_S, has_items)
    return list(connection.scalars(query))


def remove_rows(connection: Connection, job_id: str, limit: int) -> bool:
    """Remove the next rows of a job whose removal has begun. True if none is left."""
    last = connection.scalar(
        text(
            "SELECT max(line_no) FROM (SELECT line_no FROM items WHERE job_id = :job_id "
            "ORDER BY line_no LIMIT :limit) AS part"
        ),
        {"job_id": job_id, "limit": limit},
    )
    if last is None:
        return True
    delete_answers(connection, job_id, last)
    values = {"job_id": job_id, "last": last}
    count = connection.execute(
        text("DELETE FROM items WHERE job_id = :job_id AND line_no <= :last"), values
    ).rowcount
    return count < limit


def remove_files(connection: Connection, job: RemovableJob) -> list[File]:
    """Remove a job's files from the database. The caller removes their bytes after the commit."""
    found = (files_module.delete_file(connection, file_id) for file_id in job.file_ids)
    return [file for file in found if file is not None]


def _has_rows() -> ColumnElement[bool]:
    """Whether a job over a file has ended and its rows have not been removed. Responses have a retention of their
    own."""
    return and_(HAS_FILE, jobs.c.status.in_(sorted(ENDED_JOB)), jobs.c.rows_removed_at.is_(None))
