"""The query by which rows of a job are computed again: some by number, or all that have no result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, text, update

from bros_batch.db.allowed_changes import RERUNNABLE_JOBS
from bros_batch.db.connections import IDS_PER_QUERY
from bros_batch.db.files import delete_file
from bros_batch.db.job_events import add_event
from bros_batch.db.job_leases import NO_LEASE
from bros_batch.db.jobs import DEFAULT_WINDOW_S, lock_job, set_status
from bros_batch.db.states import ENDED_ITEM, ENDED_JOB, ItemStatus, JobStatus, ensure_item
from bros_batch.db.table_rows import File, Job
from bros_batch.db.tables import IS_WITHOUT_RESULT, items, jobs
from bros_batch.documents.job_file import JOB_FILE

# The next epoch: a result from before the rerun changes nothing.
_AGAIN = (
    "UPDATE items SET status = 'pending', epoch = epoch + 1, attempts = 0, error_code = NULL, error_message = NULL, "
    "result = NULL, prompt_tokens = 0, output_tokens = 0, finished_at = NULL, queued_at = NULL, source_id = {} "
    "WHERE job_id = :job_id AND body IS NOT NULL AND "
)
_COLUMNS: list[ColumnElement[Any]] = [
    items.c.line_no,
    items.c.status,
    items.c.body.is_(None),
    items.c.error_message,
    items.c.prompt_tokens,
    items.c.output_tokens,
    func.coalesce(items.c.source_id, items.c.id) != items.c.id,
]
# What a job that has ended forgets when some of its rows are computed again.
_ENDED_BEFORE: dict[str, Any] = {
    "written_line": 0,
    "written_output_bytes": 0,
    "written_error_bytes": 0,
    **dict.fromkeys(
        (
            "output_file_id",
            "error_file_id",
            "finalizing_at",
            "completed_at",
            "expired_at",
            "cancelling_at",
            "cancelled_at",
        )
    ),
}


class CannotRerun(ValueError):
    """Rows that cannot be computed again; the sentence says why. `is_conflict` is true if they could at another time,
    and false if the request names rows that never can."""

    def __init__(self, sentence: str, *, is_conflict: bool = True) -> None:
        super().__init__(sentence)
        self.is_conflict = is_conflict


def rerun_rows(
    connection: Connection,
    job_id: str,
    rows: Sequence[int] | None = None,
    *,
    window_s: float = DEFAULT_WINDOW_S,
    now_s: float | None = None,
) -> tuple[Job, list[File]]:
    """Compute rows of a job again: those with these numbers, or all that failed, expired or were cancelled.

    The results that they have are dropped, and a job that has ended runs again. Rows that could not be read stay as
    they are, and so do those that are not finished. Returns the job and its output files, whose rows are deleted; the
    caller removes their bytes after the commit. Raises CannotRerun, and LookupError for an unknown job.
    """
    now_s = time.time() if now_s is None else now_s
    job = lock_job(connection, job_id)
    if job.status not in RERUNNABLE_JOBS:
        raise CannotRerun(_reason(job))
    if job.rows_removed_at is not None:
        raise CannotRerun("Its rows were removed after the time for which they are kept.")
    if job.ingest_form == JOB_FILE:
        raise CannotRerun("It was cancelled while it was imported, so it lacks rows. Import it again.")
    for source in ENDED_ITEM:
        ensure_item(source, ItemStatus.PENDING)
    changed = _all_failed(connection, job) if rows is None else _by_number(connection, job, rows)
    # The counters of a job equal its rows. How much of a row's prompt was cached is not known, only of all rows.
    values = {name: getattr(job, name) - count for name, count in changed.items()}
    if "prompt_tokens" in values:
        values["cached_tokens"] = job.cached_tokens * values["prompt_tokens"] // max(job.prompt_tokens, 1)
    if job.status not in ENDED_JOB:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
        again = lock_job(connection, job_id)
        add_event(connection, again, "rerun", now_s)
        return again, []
    old = [delete_file(connection, file_id) for file_id in (job.output_file_id, job.error_file_id) if file_id]
    deadline_at = job.deadline_at if job.deadline_at is not None and job.deadline_at > now_s else None
    again = set_status(
        connection,
        job,
        JobStatus.IN_PROGRESS,
        now_s,
        **values,
        deadline_at=deadline_at,
        expires_at=now_s + window_s if deadline_at is None else deadline_at,
        in_progress_at=now_s,
        **NO_LEASE,
        **_ENDED_BEFORE,
    )
    return again, [file for file in old if file is not None]


def _all_failed(connection: Connection, job: Job) -> Counter[str]:
    """Make all rows without a result pending again. Returns what that takes from the counters of the job."""
    without_result = Counter(failed=job.failed, cancelled=job.cancelled, expired=job.expired)
    count = connection.execute(text(_AGAIN.format("NULL") + IS_WITHOUT_RESULT), {"job_id": job.id}).rowcount
    if not count:
        unreadable = " Rows that could not be read have nothing to compute." if job.failed else ""
        raise CannotRerun(f"No row of it failed, expired or was cancelled.{unreadable}")
    # Only the unreadable rows are left without a result, and all of them have failed.
    without_result["failed"] -= without_result.total() - count
    return without_result


def _by_number(connection: Connection, job: Job, rows: Sequence[int]) -> Counter[str]:
    """Make rows pending again. Returns what that takes from the counters of the job."""
    wanted = sorted(set(rows))
    changed: Counter[str] = Counter()
    again: list[int] = []
    for start in range(0, len(wanted), IDS_PER_QUERY):
        part = wanted[start : start + IDS_PER_QUERY]
        query = select(*_COLUMNS).where(items.c.job_id == job.id, items.c.line_no.in_(part))
        found = {line_no: rest for line_no, *rest in connection.execute(query)}
        for row in part:
            if row not in found:
                raise CannotRerun(f"It has no row {row}.", is_conflict=False)
            status, is_unreadable, message, prompt_tokens, output_tokens, is_reused = found[row]
            if is_unreadable:
                raise CannotRerun(
                    f"Row {row} could not be read, so there is nothing to compute: {message}",
                    is_conflict=False,
                )
            if status in ENDED_ITEM:
                changed.update({status: 1, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens})
                changed["reused"] += bool(is_reused)
                again.append(row)
    if not again:
        raise CannotRerun("These rows are not finished yet.")
    # By numbers that follow each other: one statement for most requests. `source_id`: they take no known answers.
    for first, last in _ranges(again):
        where = "line_no BETWEEN :first AND :last AND status NOT IN ('pending', 'queued')"
        connection.execute(
            text(_AGAIN.format("id") + where), {"job_id": job.id, "first": first, "last": last}
        )
    return changed


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The ranges that sorted numbers consist of, as (first, last)."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _reason(job: Job) -> str:
    if job.status == JobStatus.VALIDATING:
        return "Its file is still being read. Try again once it runs."
    if job.status == JobStatus.FAILED:
        return "Its input file was rejected, so it has no rows."
    return f"It is {job.status}. Try again once it has ended."
