"""From rows to files: the results and errors of a job in input order.

A file is written under a temporary name, fsynced and renamed, so it is complete or absent. A long job takes several
runs. Each run records in the database how far it came and how large the temporary files are; the next run truncates
them to these sizes and continues.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path

from bros_batch.db import ended_items, files, job_endings, job_leases, jobs
from bros_batch.db.connections import reading, writing
from bros_batch.db.job_leases import NO_LEASE, Lease, LeaseLost
from bros_batch.db.states import ItemStatus, JobStatus
from bros_batch.db.table_rows import Job
from bros_batch.jobs.task_run import Progress, TaskRun
from bros_batch.jobs.worker import Worker
from bros_batch.openai_api.batch_output import error_line, output_line

END_ITEMS = 20_000
PAGE_ROWS = 1_000
STATUSES = (JobStatus.FINALIZING, JobStatus.CANCELLING)


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A complete file and its final name."""

    file_id: str
    path: Path
    size_bytes: int
    sha256: str


def finalize(worker: Worker, job_id: str, until_s: float) -> TaskRun:
    """End a job that is finalizing or cancelling: its unfinished items, its files and its status."""
    with writing(worker.database) as connection:
        leased = job_leases.take_lease(connection, job_id, STATUSES, worker.settings.lease_s, time.time())
    if leased is None:
        return TaskRun(Progress.NOT_OURS)
    finalizer = _Finalizer(worker, *leased)
    try:
        if not leased[0].has_file:
            return finalizer.finish_without_files(until_s)
        with finalizer.files() as (output, error):
            if finalizer.end_items(until_s) and finalizer.write(output, error, until_s):
                finalizer.finish(output, error)
                return TaskRun(Progress.DONE)
            finalizer.pause()
            return TaskRun(Progress.MORE)
    except (LeaseLost, BlockingIOError):
        return TaskRun(Progress.NOT_OURS)


class _Finalizer:
    """One run of finalize on a job whose lease it holds."""

    def __init__(self, worker: Worker, job: Job, lease: Lease) -> None:
        self._database = worker.database
        self._settings = worker.settings
        self._job = job
        self._lease = lease
        self._dir = worker.settings.files_dir
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._temporary = {kind: self._dir / f".{job.id}.{kind}.part" for kind in ("output", "error")}
        self._line = 0
        self._sizes = {"output": 0, "error": 0}

    def end_items(self, until_s: float) -> bool:
        """End the unfinished items as cancelled or expired. False if the time was up before the last one."""
        target = ItemStatus.CANCELLED if self._job.status == JobStatus.CANCELLING else ItemStatus.EXPIRED
        with reading(self._database) as connection:
            line = job_endings.before_unfinished(connection, self._job.id)
        while line is not None:
            with writing(self._database) as connection:
                job_leases.hold_lease(connection, self._lease)
                line = job_endings.end_items(
                    connection, self._job.id, target, limit=END_ITEMS, after_line=line
                )
                job_leases.extend_lease(connection, self._lease, time.time() + self._settings.lease_s)
            if line is not None and time.monotonic() >= until_s:
                return False
        return True

    @contextlib.contextmanager
    def files(self) -> Iterator[tuple[BufferedRandom, BufferedRandom]]:
        """The temporary files, open and locked.

        Raises BlockingIOError while a run that has outlived its lease still has them open, since it could write into
        them at the same time.
        """
        with contextlib.ExitStack() as stack:
            output, error = (stack.enter_context(_open(path)) for path in self._temporary.values())
            for file in (output, error):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._line = self._resume(output, error)
            self._sizes = {"output": output.tell(), "error": error.tell()}
            try:
                yield output, error
            except OSError:
                # The disk is probably full. What this run has written goes, because the database needs room as well.
                for file, size in zip((output, error), self._sizes.values(), strict=True):
                    os.ftruncate(file.fileno(), size)
                raise

    def write(self, output: BufferedRandom, error: BufferedRandom, until_s: float) -> bool:
        """Append lines to the temporary files. True if all of them are on disk."""
        complete = False
        while not complete and time.monotonic() < until_s:
            with reading(self._database) as connection:
                page = ended_items.ended_page(connection, self._job.id, self._line, PAGE_ROWS)
            for item in page:
                if item.status == ItemStatus.SUCCEEDED:
                    output.write(output_line(item.id, item.epoch, item.custom_id, item.result).encode())
                else:
                    failure = (item.error_code, item.error_message)
                    line = error_line(item.id, item.custom_id, *failure, epoch=item.epoch, body=item.result)
                    error.write(line.encode())
            if page:
                self._line = page[-1].line_no
            complete = len(page) < PAGE_ROWS
        for file in (output, error):
            file.flush()
            os.fsync(file.fileno())
        self._sizes = {"output": output.tell(), "error": error.tell()}
        return complete

    def pause(self) -> None:
        """Record how far this run came, and let the next one start at once."""
        with writing(self._database) as connection:
            job_leases.hold_lease(connection, self._lease)
            job_leases.extend_lease(
                connection,
                self._lease,
                time.time() + self._settings.lease_s,
                written_line=self._line,
                written_output_bytes=self._sizes["output"],
                written_error_bytes=self._sizes["error"],
            )
            job_leases.drop_lease(connection, self._lease)

    def finish(self, output: BufferedRandom, error: BufferedRandom) -> None:
        """Give the files their final names, and record them and the end of the job in one transaction."""
        written = {
            "output": self._written_file("output", output),
            "error": self._written_file("error", error),
        }
        now_s = time.time()
        with writing(self._database) as connection:
            # Only who holds the lease may rename: the temporary files of a run that has lost it are another run's now.
            job = job_leases.hold_lease(connection, self._lease)
            for kind, file in written.items():
                if file is None:
                    self._temporary[kind].unlink()
                else:
                    self._temporary[kind].replace(file.path)
            _sync_directory(self._dir)
            for kind, file in written.items():
                if file is not None:
                    files.delete_file(connection, file.file_id)
                    files.create_file(
                        connection,
                        purpose="batch_output",
                        filename=f"{job.id}_{kind}.jsonl",
                        size_bytes=file.size_bytes,
                        sha256=file.sha256,
                        path=str(file.path),
                        file_id=file.file_id,
                        owner=job.owner,
                        expires_at=files.expiry_of(
                            now_s, self._settings.file_retention_s, job.output_expires_after_s
                        ),
                        now_s=now_s,
                    )
            status = _final_status(job)
            jobs.set_status(
                connection,
                job,
                status,
                getattr(job, jobs.STAMPS[status])
                or now_s,  # a job from another server ended when it ended there
                written_output_bytes=self._sizes["output"],
                written_error_bytes=self._sizes["error"],
                output_file_id=_id_of(written["output"]),
                error_file_id=_id_of(written["error"]),
                **NO_LEASE,
            )

    def finish_without_files(self, until_s: float) -> TaskRun:
        """End the job of a background response: its item has the result."""
        if not self.end_items(until_s):
            self.pause()
            return TaskRun(Progress.MORE)
        with writing(self._database) as connection:
            job = job_leases.hold_lease(connection, self._lease)
            jobs.set_status(connection, job, _final_status(job), **NO_LEASE)
        return TaskRun(Progress.DONE)

    def _resume(self, output: BufferedRandom, error: BufferedRandom) -> int:
        """Truncate the files to what the last run recorded, or to nothing if one of them is shorter than that.

        Returns the line after which to continue.
        """
        job = self._job
        wanted = ((output, job.written_output_bytes), (error, job.written_error_bytes))
        line = job.written_line
        if any(file.seek(0, os.SEEK_END) < size for file, size in wanted):
            line, wanted = 0, ((output, 0), (error, 0))
        for file, size in wanted:
            file.truncate(size)
            file.seek(size)
        return line

    def _written_file(self, kind: str, file: BufferedRandom) -> WrittenFile | None:
        size = self._sizes[kind]
        if size == 0:
            return None
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        # The name is the same at each attempt, so that a death after the rename leaves no orphan.
        since = self._job.cancelling_at or self._job.finalizing_at
        file_id = "file-" + hashlib.sha256(f"{self._job.id}:{kind}:{since}".encode()).hexdigest()[:24]
        return WrittenFile(file_id, self._dir / file_id, size, sha256)


def _final_status(job: Job) -> JobStatus:
    if job.status == JobStatus.CANCELLING:
        return JobStatus.CANCELLED
    return JobStatus.EXPIRED if job.expired else JobStatus.COMPLETED


def _open(path: Path) -> BufferedRandom:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _id_of(file: WrittenFile | None) -> str | None:
    return None if file is None else file.file_id
