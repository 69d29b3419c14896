"""The rows of a job as a table for a person: written by a process of its own, then sent as a file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path, PurePath

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from bros_batch.db.table_rows import Job
from bros_batch.documents.answer_columns import KnownColumns
from bros_batch.documents.writers.answer_table import Unwritable, Written
from bros_batch.documents.writers.table_limits import UnwritableTable, check_num_rows
from bros_batch.documents.writers.write_table import check_library
from bros_batch.request_error import RequestError
from bros_batch.web.api.batch_object import batch_object
from bros_batch.web.api.rows import ENDED_ROWS, get_rows_job, row_lines
from bros_batch.web.api.uploads import UPLOAD_SUFFIX
from bros_batch.web.app_state import app_state
from bros_batch.web.client_disconnect import while_connected
from bros_batch.web.errors import disk_full, not_found
from bros_batch.web.owners import visible_owner

logger = logging.getLogger(__name__)

FORMATS = {"xlsx": "Excel", "csv": "CSV", "parquet": "Parquet"}
# Tables that are written at once. Each is a process that may use up a core.
MAX_WRITERS = 2

_decode = msgspec.json.Decoder(Written | Unwritable).decode


class TableDownloads:
    """Writes the tables that are asked for."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(MAX_WRITERS)

    async def send(self, request: Request) -> ASGIApp:
        """The rows of a job that have ended, in the format that the path names. Raises RequestError."""
        kind = request.path_params["kind"]
        if kind not in FORMATS:
            raise not_found("format", kind, "kind")
        state, job_id, seen = app_state(request), request.path_params["job_id"], visible_owner(request)
        job = await state.read(lambda connection: get_rows_job(connection, job_id, seen))
        if not can_write(kind, job):
            raise RequestError(
                f"This job has too many rows for {FORMATS[kind]}, or its library is missing.", "kind"
            )
        path = state.settings.files_dir / f"{secrets.token_hex(12)}{UPLOAD_SUFFIX}"
        lines = row_lines(state, job_id, ENDED_ROWS, seen)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                async with self._room:
                    await while_connected(request, _write(kind, path, job, lines))
                # Not compressed on the way: what is large in it is compressed already, or not worth the time.
                headers = {"Content-Encoding": "identity"}
                await FileResponse(path, filename=file_name(job, kind), headers=headers)(scope, receive, send)
            finally:
                path.unlink(missing_ok=True)

        return respond


def can_write(kind: str, job: Job) -> bool:
    """Whether a format has room for a job, and is there."""
    try:
        check_library(kind)
        check_num_rows(kind, job.total)
    except UnwritableTable:
        return False
    return True


def file_name(job: Job, kind: str) -> str:
    """The name of the table: that of its input, and what was added."""
    source = job.source or {}
    stem = PurePath(str(source.get("name") or job.name or job.id)).stem
    return f"{stem}-answers.{kind}"


async def _write(kind: str, path: Path, job: Job, lines: AsyncIterator[bytes]) -> None:
    program = ("-m", "bros_batch.documents.writers.answer_table")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program, kind, str(path), stdin=PIPE, stdout=PIPE
    )
    try:
        await _feed(process, KnownColumns.of_batch(batch_object(job)), lines)
        assert process.stdout is not None
        said = await process.stdout.read()
        if not said:
            # What it wrote to stderr is in the log of the server.
            logger.error("the process that wrote a table ended with %s", await process.wait())
            raise RequestError("The table cannot be written.", "kind")
        report = _decode(said)
        if isinstance(report, Unwritable):
            raise disk_full() if report.is_disk_full else RequestError(report.message, "kind")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _feed(process: Process, known: KnownColumns, lines: AsyncIterator[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):  # the process says why it reads no more
        process.stdin.write(msgspec.json.encode(known) + b"\n")
        async for piece in lines:
            process.stdin.write(piece)
            await process.stdin.drain()
    process.stdin.close()
