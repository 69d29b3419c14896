"""A table that a person uploads: received, read by a process of its own, and kept as the input file of a job."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from bros_batch.document_fields import plain_name
from bros_batch.documents.first_documents import FirstDocument, first_documents
from bros_batch.documents.form import BATCH, form_of
from bros_batch.documents.readers.convert_table import Converted, Problem
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS
from bros_batch.request_error import RequestError
from bros_batch.web.api.event_stream import EventStream, event
from bros_batch.web.api.files import keep_upload, received_upload
from bros_batch.web.api.uploads import UPLOAD_SUFFIX, Upload
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.audit import log_change
from bros_batch.web.errors import disk_full
from bros_batch.web.owners import owner_of

logger = logging.getLogger(__name__)

# Tables that are read at once. Each is a process that may use up a core.
MAX_READERS = 2
SHOWN_ROWS = 5
SHOWN_COLUMNS = 50
MAX_CELL_CHARS = 300
MAX_COLUMNS = 16_384
MAX_SHEETS = 100
MAX_SHEET_CHARS = 256
# The longest line that the reading process writes: it has the names of all columns.
MAX_REPORT_BYTES = 64 * 1024**2

_decode = msgspec.json.Decoder(Converted | Problem).decode


class TableUploads:
    """Receives tables. The response is a stream of events: `{"rows": N}` while it is read, then `{"table": ...}`."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(MAX_READERS)

    async def receive(self, request: Request) -> ASGIApp:
        """Receive the file of a form. What was uploaded is removed at the end, and the lines are kept instead."""
        upload = await received_upload(request)

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await EventStream(request, self._events(request, upload))(scope, receive, send)
            finally:
                upload.path.unlink(missing_ok=True)

        return respond

    async def _events(self, request: Request, upload: Upload) -> AsyncGenerator[bytes]:
        state = app_state(request)
        target = state.settings.files_dir / f"{secrets.token_hex(12)}{UPLOAD_SUFFIX}"
        try:
            async with self._room, contextlib.aclosing(_reports(state, upload, target)) as reports:
                async for report in reports:
                    if not isinstance(report, Converted):
                        yield event(report)
                        continue
                    lines = Upload(
                        target,
                        f"{Path(report.name).stem or 'table'}.jsonl",
                        report.size_bytes,
                        report.sha256,
                        {"purpose": "batch"},
                    )
                    shown = await asyncio.to_thread(partial(first_documents, target, SHOWN_ROWS))
                    file = await keep_upload(state, lines, owner_of(request))
                    log_change(request.scope, "file.created", file=file.id)
                    yield event({"table": table_object(file.id, report, shown)})
        finally:
            target.unlink(missing_ok=True)


async def _reports(state: AppState, upload: Upload, target: Path) -> AsyncGenerator[Any]:
    """Yield what the reading process says. Raises RequestError for a table that cannot be read."""
    sheet = upload.fields.get("sheet", "")[:MAX_SHEET_CHARS].replace("\0", "")
    paths = (str(upload.path), str(target))
    arguments = (upload.filename, *paths, str(state.settings.max_upload_bytes), sheet)
    program = ("-m", "bros_batch.documents.readers.convert_table")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program, *arguments, stdout=PIPE, limit=MAX_REPORT_BYTES
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.startswith(b'{"rows"'):
                yield msgspec.json.decode(line)
                continue
            report = _decode(line)
            if isinstance(report, Converted):
                yield report
            elif report.is_disk_full:
                raise disk_full()
            else:
                raise RequestError(report.message, "file")
            return
        # What it wrote to stderr is in the log of the server.
        logger.error("the process that read an uploaded table ended with %s", await process.wait())
        message = f"{upload.filename} cannot be read: it is damaged, or needs too much memory."
        raise RequestError(message, "file")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def table_object(file_id: str, table: Converted, shown: list[FirstDocument]) -> dict[str, Any]:
    """What the page knows of a table. `chips` are the names of its columns as a prompt writes them."""
    columns = table.columns
    if columns is None:
        columns = list(dict.fromkeys(name for each in shown for name in each.document))
    names = columns[:SHOWN_COLUMNS]
    is_requests = bool(shown) and form_of(shown[0].document, ()) == BATCH
    return {
        "file": file_id,
        "form": BATCH if is_requests else "document",
        "endpoint": shown[0].document.get("url", CHAT_COMPLETIONS) if is_requests else None,
        "source": {
            "name": table.name,
            "format": table.format,
            "columns": table.columns[:MAX_COLUMNS] if table.columns is not None else None,
            "id_field": table.id_field,
            "types": table.types or None,
        },
        "rows": table.rows,
        "bad_rows": table.bad_rows,
        "first_problem": table.first_problem,
        "notes": table.notes,
        "sheets": table.sheets[:MAX_SHEETS],
        "num_columns": len(columns),
        "columns": names,
        "chips": [plain_name(name) for name in names],
        "first": [
            {"row": each.row, "cells": [_cell(each.document.get(name)) for name in names]} for each in shown
        ],
    }


def _cell(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_CELL_CHARS else f"{text[:MAX_CELL_CHARS]}…"
