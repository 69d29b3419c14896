"""From an exported file to a job and its rows, group by group, like the ingest of an input file.

Each group is committed with the position in the file, so the next run continues where this one was interrupted. Only
when the last line has confirmed all counts does the job get its status; until then it is `validating`.
"""

from __future__ import annotations

import time
from io import BufferedReader

from bros_batch.db import imported_jobs, job_leases
from bros_batch.db.connections import writing
from bros_batch.db.job_leases import Lease
from bros_batch.db.states import JobStatus
from bros_batch.db.table_rows import Job
from bros_batch.documents.job_file import (
    MAX_HEAD_BYTES,
    MAX_ROW_BYTES,
    JobEnd,
    JobHead,
    StoredRow,
    form_of_rows,
    read_head,
    read_line,
)
from bros_batch.jobs.task_run import Progress, TaskRun
from bros_batch.jobs.worker import Worker
from bros_batch.request_error import RequestError

GROUP_BYTES = 4 * 1024**2


def import_job(worker: Worker, job: Job, lease: Lease, source: BufferedReader, until_s: float) -> TaskRun:
    """Continue an import whose lease is held until it ends or `time.monotonic()` reaches `until_s`."""
    counts = imported_jobs.counts_of(job)
    number = counts.total + 1  # of the line in the file
    try:
        head = read_head(source.readline(MAX_HEAD_BYTES))
        form = form_of_rows(head)
        source.seek(max(job.ingest_offset, source.tell()))
        rows: list[StoredRow] = []
        size = 0
        while True:
            line = source.readline(MAX_ROW_BYTES + 1)
            number += 1
            if not line.endswith(b"\n"):
                problem = "is too long" if len(line) > MAX_ROW_BYTES else "the file ends too early"
                raise RequestError(f"{problem}.")
            read = read_line(line, form)
            if isinstance(read, JobEnd):
                counts.check_end(read.end)
                if source.read(1):
                    raise RequestError("there is something after the last line.")
                break
            counts.add(read)
            rows.append(read)
            size += len(line)
            if len(rows) >= worker.settings.ingest_group_lines or size >= GROUP_BYTES:
                _commit(worker, lease, rows, imported_jobs.count_columns(counts), source.tell())
                rows, size = [], 0
                if time.monotonic() >= until_s:
                    with writing(worker.database) as connection:
                        job_leases.drop_lease(connection, lease)
                    return TaskRun(Progress.MORE)
        _commit(worker, lease, rows, imported_jobs.count_columns(counts), source.tell())
        return _finish(worker, lease, head, form)
    except RequestError as error:
        with writing(worker.database) as connection:
            held = job_leases.hold_lease(connection, lease)
            message = f"The exported job is damaged: line {number}: {error.message}"
            imported_jobs.reject_import(connection, held, message)
        return TaskRun()


def _commit(worker: Worker, lease: Lease, rows: list[StoredRow], counts: dict[str, int], offset: int) -> None:
    with writing(worker.database) as connection:
        job = job_leases.hold_lease(connection, lease)
        imported_jobs.insert_rows(connection, job.id, rows)
        until = time.time() + worker.settings.lease_s
        job_leases.extend_lease(connection, lease, until, ingest_offset=offset, **counts)


def _finish(worker: Worker, lease: Lease, head: JobHead, form: str) -> TaskRun:
    with writing(worker.database) as connection:
        job = job_leases.hold_lease(connection, lease)
        job = imported_jobs.finish_import(connection, job, head, form)
    if job.status == JobStatus.IN_PROGRESS:
        return TaskRun(prepare=[job.model])
    ends = job.status in (JobStatus.FINALIZING, JobStatus.CANCELLING)
    return TaskRun(finalize=[job.id] if ends else ())
