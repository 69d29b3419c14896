"""Queries about files and jobs, and the lines of a job as its owner sees them. Every function takes an open
connection (`db.reading` or `db.writing`); the ones that write want a writing one.

The other themes: `store_control` (create, cancel, pause, retry, end), `store_items` (claim, finish), `store_lost`
(back to pending), `store_ingest` (leases and progress of the long tasks, new rows), `store_services` (engines, API
keys, which Redis it is). All SQL of the project stands in these six files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, exists, func, insert, literal_column, or_, select, tuple_

from bros_batch.db.job_control import (
    cancel_job,
    create_job,
    pause_job,
    resume_job,
    retry_job,
)
from bros_batch.db.services import (
    create_api_key,
    find_api_key,
    list_api_keys,
    list_engines,
    revoke_api_key,
    upsert_engines,
)
from bros_batch.db.states import ENDED_JOB, WITHOUT_RESULT, ItemStatus
from bros_batch.db.tables import File, Item, Job, files, items, jobs, line_id, new_file_id, request_id

__all__ = [
    "cancel_job",
    "count_error_codes",
    "count_jobs",
    "create_api_key",
    "create_file",
    "create_job",
    "delete_file",
    "file_in_use",
    "find_api_key",
    "get_file",
    "get_job",
    "iter_error_lines",
    "iter_items",
    "iter_result_lines",
    "job_counts",
    "list_api_keys",
    "list_engines",
    "list_files",
    "list_jobs",
    "pause_job",
    "resume_job",
    "retry_job",
    "revoke_api_key",
    "total_counts",
    "upsert_engines",
]

PAGE_ROWS = 500


class NotFound(LookupError):
    """No such file or job."""


# Files ----------------------------------------------------------------------------------------------------------------


def create_file(
    connection: Connection,
    *,
    purpose: str,
    filename: str,
    size_bytes: int,
    sha256: str,
    path: str,
    file_id: str | None = None,
    expires_at: float | None = None,
    now_s: float | None = None,
) -> File:
    """Record a file whose bytes already lie at `path`."""
    file = File(
        id=file_id or new_file_id(),
        purpose=purpose,
        filename=filename,
        bytes=size_bytes,
        sha256=sha256,
        path=path,
        created_at=time.time() if now_s is None else now_s,
        expires_at=expires_at,
    )
    connection.execute(insert(files), {name: getattr(file, name) for name in File.__slots__})
    return file


def get_file(connection: Connection, file_id: str) -> File | None:
    row = connection.execute(select(files).where(files.c.id == file_id)).mappings().first()
    return File.of(row) if row else None


def list_files(
    connection: Connection, *, after: str | None = None, limit: int = 20, purpose: str | None = None
) -> list[File]:
    """Newest first, those after the file `after`. Ask for one more than shown to learn whether more follow."""
    query = select(files).order_by(files.c.created_at.desc(), files.c.id.desc()).limit(limit)
    if purpose:
        query = query.where(files.c.purpose == purpose)
    if after:
        cursor = select(files.c.created_at, files.c.id).where(files.c.id == after)
        query = query.where(tuple_(files.c.created_at, files.c.id) < cursor.scalar_subquery())
    return [File.of(row) for row in connection.execute(query).mappings()]


def delete_file(connection: Connection, file_id: str) -> File | None:
    """Forget a file and answer what it was, so that the caller removes its bytes after the commit."""
    file = get_file(connection, file_id)
    if file is not None:
        connection.execute(delete(files).where(files.c.id == file_id))
    return file


def file_in_use(connection: Connection, file_id: str) -> bool:
    """Whether a job that has not ended still reads this file."""
    query = select(exists().where(jobs.c.input_file_id == file_id, jobs.c.status.not_in(sorted(ENDED_JOB))))
    return bool(connection.scalar(query))


def expired_files(connection: Connection, now_s: float, limit: int = 100) -> list[File]:
    """Files past their time that no unfinished job reads."""
    reader = exists().where(jobs.c.input_file_id == files.c.id, jobs.c.status.not_in(sorted(ENDED_JOB)))
    query = select(files).where(files.c.expires_at < now_s, ~reader).order_by(files.c.expires_at).limit(limit)
    return [File.of(row) for row in connection.execute(query).mappings()]


# Jobs -----------------------------------------------------------------------------------------------------------------


def get_job(connection: Connection, job_id: str) -> Job | None:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().first()
    return Job.of(row) if row else None


def list_jobs(
    connection: Connection,
    *,
    after: str | None = None,
    limit: int = 20,
    status: str | Sequence[str] | None = None,
    search: str | None = None,
) -> list[Job]:
    """Newest first, those after the job `after`. `search` is looked for in id, name and model."""
    query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
    if status:
        query = query.where(jobs.c.status.in_([status] if isinstance(status, str) else list(status)))
    if search:
        found = (
            column.icontains(search, autoescape=True) for column in (jobs.c.id, jobs.c.name, jobs.c.model)
        )
        query = query.where(or_(*found))
    if after:
        cursor = select(jobs.c.created_at, jobs.c.id).where(jobs.c.id == after)
        query = query.where(tuple_(jobs.c.created_at, jobs.c.id) < cursor.scalar_subquery())
    return [Job.of(row) for row in connection.execute(query).mappings()]


def count_jobs(connection: Connection) -> dict[str, int]:
    """How many jobs stand in each status."""
    rows = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
    return {row[0]: row[1] for row in rows}


def total_counts(connection: Connection) -> dict[str, int]:
    """Items by how they ended, and tokens, over all jobs: from the jobs' counters, so cheap."""
    names = ("total", "succeeded", "failed", "cancelled", "expired", "prompt_tokens", "output_tokens")
    row = connection.execute(select(*(func.coalesce(func.sum(jobs.c[name]), 0) for name in names))).one()
    return {name: int(value) for name, value in zip(names, row, strict=True)}


def job_counts(connection: Connection, job_id: str) -> dict[ItemStatus, int]:
    """Items by status, counted from the rows themselves. The job's own counters say the same, at once."""
    query = select(items.c.status, func.count()).where(items.c.job_id == job_id).group_by(items.c.status)
    counts = dict.fromkeys(ItemStatus, 0)
    for status, count in connection.execute(query):
        counts[ItemStatus(status)] = count
    return counts


def count_error_codes(connection: Connection, job_id: str) -> dict[str, int]:
    """How many of a job's lines ended with each error code."""
    query = (
        select(items.c.error_code, func.count())
        .where(items.c.job_id == job_id, _status_in(*WITHOUT_RESULT))
        .group_by(items.c.error_code)
        .order_by(func.count().desc())
    )
    return {code or "": count for code, count in connection.execute(query)}


# Lines ----------------------------------------------------------------------------------------------------------------


def iter_items(
    connection: Connection,
    job_id: str,
    status: ItemStatus | Sequence[ItemStatus] | None = None,
    after_line: int = 0,
    limit: int | None = None,
) -> Iterator[Item]:
    """A job's items in input order, read in pages, so memory does not grow with the job."""
    wanted = (status,) if isinstance(status, ItemStatus) else status
    left = limit
    while left is None or left > 0:
        page_rows = PAGE_ROWS if left is None else min(left, PAGE_ROWS)
        query = select(items).where(items.c.job_id == job_id, items.c.line_no > after_line)
        if wanted:
            query = query.where(_status_in(*wanted))
        query = query.order_by(items.c.line_no).limit(page_rows)
        page = [Item.of(row) for row in connection.execute(query).mappings()]
        yield from page
        if len(page) < page_rows:
            return
        after_line = page[-1].line_no
        left = None if left is None else left - len(page)


@dataclass(frozen=True, slots=True)
class EndedLine:
    """What an output or error line is made of; without the request, which may be large."""

    id: int
    line_no: int
    custom_id: str | None
    status: str
    epoch: int
    result: str | None
    error_code: str | None
    error_message: str | None


def ended_lines(
    connection: Connection, job_id: str, after_line: int = 0, limit: int = PAGE_ROWS, *statuses: ItemStatus
) -> list[EndedLine]:
    """The next lines of a job in input order: those in `statuses`, or, of a job that has ended, all of them.

    `statuses` is SUCCEEDED or some of WITHOUT_RESULT: what one partial index covers. Of anything else a planner
    with old statistics believes that there are few, and sorts the whole job for each page.
    """
    query = select(*(items.c[name] for name in EndedLine.__slots__))
    query = query.where(items.c.job_id == job_id, items.c.line_no > after_line)
    if statuses:
        query = query.where(_status_in(*statuses))
    return [EndedLine(*row) for row in connection.execute(query.order_by(items.c.line_no).limit(limit))]


def iter_result_lines(connection: Connection, job_id: str, after_line: int = 0) -> Iterator[str]:
    """Output lines of what has succeeded so far, in input order, each with its newline."""
    while page := ended_lines(connection, job_id, after_line, PAGE_ROWS, ItemStatus.SUCCEEDED):
        yield from map(output_line, page)
        after_line = page[-1].line_no


def iter_error_lines(connection: Connection, job_id: str, after_line: int = 0) -> Iterator[str]:
    """Error lines of what has ended without a result so far, in input order, each with its newline."""
    while page := ended_lines(connection, job_id, after_line, PAGE_ROWS, *WITHOUT_RESULT):
        yield from map(error_line, page)
        after_line = page[-1].line_no


def output_line(line: EndedLine) -> str:
    """An OpenAI batch output line. The stored body goes out as it is: it is not parsed again."""
    response = f'{{"status_code":200,"request_id":"{request_id(line.id, line.epoch)}","body":{line.result}}}'
    head = f'"id":"{line_id(line.id)}","custom_id":{json.dumps(line.custom_id, ensure_ascii=False)}'
    return f'{{{head},"response":{response},"error":null}}\n'


def error_line(line: EndedLine) -> str:
    error = {"code": line.error_code, "message": line.error_message}
    fields = {"id": line_id(line.id), "custom_id": line.custom_id, "response": None, "error": error}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"


def _status_in(*statuses: ItemStatus):  # type: ignore[no-untyped-def]
    # Literals, not parameters: a planner that has a parameter cannot know that a partial index covers it.
    return items.c.status.in_([literal_column(f"'{status.value}'") for status in sorted(statuses)])
