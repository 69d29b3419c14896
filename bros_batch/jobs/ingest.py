"""From a file to items: lines are read in bounded memory, checked, and inserted in groups.

Each group is committed in one transaction with the position in the file, so after the death of a worker the next run
continues at the last committed line, and no line is inserted twice or skipped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from bros_batch.db import files, job_leases, jobs, new_items
from bros_batch.db.connections import writing
from bros_batch.db.job_leases import NO_LEASE, Lease, LeaseLost
from bros_batch.db.states import JobStatus
from bros_batch.db.table_rows import Job
from bros_batch.documents.form import DOCUMENT
from bros_batch.documents.input_lines import input_lines
from bros_batch.documents.item_requests import prompt_fields
from bros_batch.documents.job_file import JOB_FILE
from bros_batch.documents.lines import LineReader
from bros_batch.documents.new_item import NewItem
from bros_batch.jobs.import_job import import_job
from bros_batch.jobs.limited_requests import limited_job_requests
from bros_batch.jobs.task_run import Progress, TaskRun
from bros_batch.jobs.worker import Worker
from bros_batch.request_error import RequestError

log = logging.getLogger("bros.ingest")

GROUP_BYTES = 4 * 1024**2
GROUP_BYTES_READ = 64 * 1024**2  # blank lines and lines that are too long take time, too
ANALYZE_LINES = 20_000
MAX_ERRORS_LISTED = 100


@dataclass(slots=True)
class LineGroup:
    """Lines that have been read but not committed, and the position in the file after them."""

    items: list[NewItem]
    line_no: int
    offset: int


def ingest(worker: Worker, job_id: str, until_s: float) -> TaskRun:
    """Continue reading a job's file until it ends or `time.monotonic()` reaches `until_s`.

    A file without a good line fails the job.
    """
    settings = worker.settings
    with writing(worker.database) as connection:
        leased = job_leases.take_lease(
            connection, job_id, (JobStatus.VALIDATING,), settings.lease_s, time.time()
        )
        if leased is None:
            return TaskRun(Progress.NOT_OURS)
        job, lease = leased
        file = files.get_file(connection, job.input_file_id)
    ingester = _Ingester(worker, job, lease)
    try:
        if file is None:
            return ingester.fail("The input file is gone.", "input_file_id")
        if job.ingest_form == JOB_FILE:
            with Path(file.path).open("rb") as source:
                return import_job(worker, job, lease, source, until_s)
        if job.model != settings.model_name:
            return ingester.fail(
                f"The model {job.model!r} is not served here; this service has {settings.model_name!r}.",
                "model",
            )
        try:
            with Path(file.path).open("rb") as source:
                return ingester.read(source, until_s)
        except OSError as error:
            return ingester.fail(f"The input file can't be read: {error.strerror}.", "input_file_id")
        except RequestError as error:
            return ingester.fail(f"The job's defaults are invalid: {error.message}", error.param)
    except LeaseLost:
        return TaskRun(Progress.NOT_OURS)


class _Ingester:
    """One run of ingest on a job whose lease it holds."""

    def __init__(self, worker: Worker, job: Job, lease: Lease) -> None:
        self._database = worker.database
        self._settings = worker.settings
        self._job = job
        self._lease = lease
        self._form = job.ingest_form

    def read(self, source: BufferedReader, until_s: float) -> TaskRun:
        # An error in the job itself is reported once, here, and not for each of a million lines.
        if self._job.defaults:
            requests = limited_job_requests(self._job.endpoint, self._job.model, DOCUMENT, self._job.defaults)
            if isinstance(requests, RequestError):
                raise requests
        source.seek(self._job.ingest_offset)
        for group in self._groups(source):
            self._commit(group)
            if time.monotonic() >= until_s:
                with writing(self._database) as connection:
                    job_leases.drop_lease(connection, self._lease)
                return TaskRun(Progress.MORE)
        return self._finish()

    def fail(self, message: str, param: str | None) -> TaskRun:
        error = {"code": "invalid_request", "line": None, "message": message, "param": param}
        with writing(self._database) as connection:
            job = job_leases.hold_lease(connection, self._lease)
            jobs.set_status(connection, job, JobStatus.FAILED, errors=[*job.errors, error], **NO_LEASE)
        return TaskRun()

    def _groups(self, source: BufferedReader) -> Iterator[LineGroup]:
        limit = self._settings.max_line_bytes
        offset, line_no = self._job.ingest_offset, self._job.ingest_line
        defaults = self._job.defaults
        models = self._settings.model_names if defaults.get("model") is None else None
        reader = LineReader(
            self._job.endpoint,
            models,
            self._form,
            prompt_fields(defaults),
            id_field=(self._job.source or {}).get("id_field"),
            strict=self._settings.strict,
        )
        items: list[NewItem] = []
        size, reached = 0, offset
        for line, num_bytes in input_lines(source, limit):
            line_no += 1
            offset += num_bytes
            if line is None:
                items.append(_too_long(line_no, limit))
            elif line:
                items.append(reader.read(line, line_no))
                size += len(line)
            full = len(items) >= self._settings.ingest_group_lines or size >= GROUP_BYTES
            if full or offset - reached >= GROUP_BYTES_READ:
                self._form = reader.form
                yield LineGroup(items, line_no, offset)
                items, size, reached = [], 0, offset
        if offset > reached:
            self._form = reader.form
            yield LineGroup(items, line_no, offset)
        if reader.ignored:
            log.info(
                "job %s: ignored in its lines: %s", self._job.id, ", ".join(map(repr, sorted(reader.ignored)))
            )

    def _commit(self, group: LineGroup) -> None:
        rows = group.items
        now_s = time.time()
        with writing(self._database) as connection:
            job = job_leases.hold_lease(connection, self._lease)
            new_items.insert_items(connection, job.id, rows, now_s)
            bad = [row for row in rows if row.error_code is not None]
            room = max(MAX_ERRORS_LISTED - len(job.errors), 0)
            job_leases.extend_lease(
                connection,
                self._lease,
                now_s + self._settings.lease_s,
                ingest_form=self._form,
                ingest_offset=group.offset,
                ingest_line=group.line_no,
                total=job.total + len(rows),
                failed=job.failed + len(bad),
                **({"errors": [*job.errors, *map(_listed, bad[:room])]} if bad and room else {}),
            )

    def _finish(self) -> TaskRun:
        with writing(self._database) as connection:
            job = job_leases.hold_lease(connection, self._lease)
            if job.total > job.failed:
                if job.total >= ANALYZE_LINES:
                    new_items.analyze_items(connection)
                jobs.set_status(
                    connection, job, JobStatus.IN_PROGRESS, in_progress_at=time.time(), **NO_LEASE
                )
                return TaskRun(prepare=[job.model])
            error = {"code": "empty_file", "line": None, "message": "The file has no lines.", "param": None}
            jobs.set_status(connection, job, JobStatus.FAILED, errors=job.errors or [error], **NO_LEASE)
        return TaskRun()


def _too_long(line_no: int, limit: int) -> NewItem:
    message = f"Line {line_no} is longer than the {limit} bytes that a line may have."
    return NewItem(line_no, None, None, "invalid_request", message)


def _listed(row: NewItem) -> dict[str, Any]:
    return {
        "code": row.error_code,
        "line": row.line_no,
        "message": row.error_message,
        "param": row.error_param,
    }
