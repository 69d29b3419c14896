"""A job on the server: its progress and its results."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from bros_batch.client.http_client import Client as HttpClient
from bros_batch.client.progress import (
    POLL_INTERVAL_S,
    JobWatch,
    Meter,
    observe,
    progress_display,
    visible_console,
)
from bros_batch.db.states import ENDED_JOB
from bros_batch.item_counts import ItemCounts
from bros_batch.python.answers import Answers, Asked, RowsFailed, row_dicts, with_answers
from bros_batch.python.sources import Source
from bros_batch.python.warn_caller import warn_caller


class JobFailed(Exception):
    """A job could not use its input, so it has no rows. `batch` is its batch object."""

    def __init__(self, message: str, batch: dict[str, Any]) -> None:
        super().__init__(message)
        self.batch = batch


class Job:
    """A job. It runs on the server, whether or not this process waits for it.

    `batch` is its batch object as of the last request, with all that the server says about it.
    """

    def __init__(
        self,
        http: HttpClient,
        batch: dict[str, Any],
        source: Source | None = None,
        asked: Asked | None = None,
    ) -> None:
        self._http = http
        self._source = source
        self._asked = asked or Asked(batch["endpoint"], list(batch.get("answer_columns") or ()))
        self.batch = batch

    @property
    def id(self) -> str:
        """The id of the job, with which `Client.job` finds it again."""
        return str(self.batch["id"])

    @property
    def status(self) -> str:
        """The status of the job as of the last request, such as `in_progress` or `completed`."""
        return str(self.batch["status"])

    def __repr__(self) -> str:
        counts = ItemCounts.of_batch(self.batch)
        progress = ", ".join([self.status, counts.of_total(), *counts.shortfalls()])
        return f"<Job {self.id} {self.batch.get('name') or ''!r}: {progress}>"

    def refresh(self) -> Self:
        """Ask the server how far the job is."""
        self.batch = self._http.batch(self.id)
        return self

    def wait(self, *, progress: bool = True) -> Self:
        """Wait until the job ends, with a progress bar in terminals and notebooks.

        After Ctrl-C, the job continues to run.
        """
        console = visible_console() if progress else None
        meter = Meter()
        try:
            with progress_display(self.batch, console) as show:
                for batch in observe(self._http, self.batch):
                    self.batch = batch
                    show(meter.read(batch, time.monotonic()))
        except KeyboardInterrupt:
            self._say_that_it_runs()
            raise
        return self

    async def wait_async(self, *, progress: bool = True) -> Self:
        """Wait until the job ends, as `wait` does, while the event loop does other work."""
        console = visible_console() if progress else None
        watch, meter = JobWatch(self._http, self.batch), Meter()
        try:
            with progress_display(self.batch, console) as show:
                while True:
                    show(meter.read(self.batch, time.monotonic()))
                    if self.status in ENDED_JOB:
                        return self
                    await asyncio.sleep(POLL_INTERVAL_S)
                    self.batch = await asyncio.to_thread(watch.poll)
        except (KeyboardInterrupt, asyncio.CancelledError):
            self._say_that_it_runs()
            raise

    def result(self, output: str | Path | None = None, *, progress: bool = True) -> Any:
        """Wait until the job ends, and return its table with the columns of the answers.

        The table is of the kind that was submitted. That of a job from `Client.job` or from a file is a list of dicts.
        With `output`, the table is written to that file instead, as .csv, .tsv, .xlsx, .parquet or .jsonl, and its path
        is returned.

        Rows without an answer have None instead, and a message in the column `_error`; the warning RowsFailed says how
        many there are. Raises JobFailed if the job could not use its input.
        """
        self.wait(progress=progress)
        return self._table(output)

    async def result_async(self, output: str | Path | None = None, *, progress: bool = True) -> Any:
        """Return what `result` returns, while the event loop does other work."""
        await self.wait_async(progress=progress)
        return await asyncio.to_thread(self._table, output)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that have ended so far: each with its document, answer, error, tokens and times."""
        return map(msgspec.json.decode, self._http.row_lines(self.id, only="ended"))

    def pause(self) -> Self:
        """Let the job rest until it is resumed."""
        return self._changed("pause")

    def resume(self) -> Self:
        """Continue the job after it was paused."""
        return self._changed("resume")

    def cancel(self) -> Self:
        """End the job. The answers that exist are kept."""
        return self._changed("cancel")

    def rerun(self) -> Self:
        """Compute the rows again that have no answer, after the job has ended."""
        self.batch = self._http.post(f"/v1/batches/{self.id}/rerun", {"only": "failed"})
        return self

    def _changed(self, action: str) -> Self:
        self.batch = self._http.post(f"/v1/batches/{self.id}/{action}")
        return self

    def _table(self, output: str | Path | None) -> Any:
        if self.status == "failed":
            errors = (self.batch.get("errors") or {}).get("data") or [{"message": "it has no usable row"}]
            raise JobFailed(f"The job {self.id} failed: {errors[0]['message']}", self.batch)
        if output is not None:
            written = self._written(str(output))
            self._warn(ItemCounts.of_batch(self.batch).without_result, None)
            return written
        lines = self._http.row_lines(self.id, only="ended")
        if self._source is None:
            columns = (self.batch.get("source") or {}).get("columns")
            found = row_dicts(lines, self._asked, columns)
            self._warn(ItemCounts.of_batch(self.batch).without_result, None)
            return found
        model = self._asked.model if self._source.is_plain else None
        answers = Answers.of_rows(lines, self._source.num_rows(), model)
        failures = answers.failures()
        self._warn(len(failures), failures[0] if failures else None)
        return with_answers(self._source, self._asked, answers)

    def _written(self, output: str) -> Path:
        from bros_batch.client.result_table import Selection, check_table, write_result_table
        from bros_batch.python.output import output_format

        kind = output_format(output)
        check_table(kind, ItemCounts.of_batch(self.batch).ended)
        write_result_table(self._http, self.batch, kind, output, Selection())
        return Path(output)

    def _warn(self, num_failed: int, first: tuple[int, str] | None) -> None:
        if num_failed:
            total = ItemCounts.of_batch(self.batch).total
            message = f"{num_failed} of {total} rows of the job {self.id} have no answer"
            if first is not None:
                row = f"row {first[0]}"
                shown = first[1] if first[1].lower().startswith(f"{row},") else f"{row}: {first[1]}"
                message += f"; the first is {shown[:300]}"
            warn_caller(message, RowsFailed)

    def _say_that_it_runs(self) -> None:
        print(
            f"The job continues to run. To get its result later:\n"
            f'    bros_batch.Client("{self._http.url}").job("{self.id}").result()',
            file=sys.stderr,
        )
