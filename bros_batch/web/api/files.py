"""`/v1/files`: upload, list, get, download and delete files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response

from bros_batch.db import files
from bros_batch.db.table_rows import File
from bros_batch.request_error import RequestError
from bros_batch.web.api.durations import MAX_EXPIRY_S, MIN_EXPIRY_S
from bros_batch.web.api.pagination import list_page
from bros_batch.web.api.uploads import Upload, guarded, receive_upload
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.audit import log_change
from bros_batch.web.errors import ApiError, JSONResponse, not_found
from bros_batch.web.owners import owner_of, visible_owner

MAX_NUMBER_CHARS = 12
ALL_FILES = 10_000

router = APIRouter(prefix="/v1/files")


@router.post("")
async def create_file(request: Request) -> Response:
    """Store the file of a form with `file` and `purpose`, as OpenAI's clients send it."""
    state = app_state(request)
    upload = await received_upload(request)
    file = await keep_upload(state, upload, owner_of(request))
    log_change(request.scope, "file.created", file=file.id)
    return JSONResponse(file_object(file))


async def received_upload(request: Request) -> Upload:
    """Receive the file of a form, once there is room for one more upload. The caller must keep or remove it."""
    state = app_state(request)
    async with state.uploads.share(request.client.host if request.client else None) as share:
        await share.grow(1)
        return await receive_upload(request, state.settings.files_dir, state.settings.max_upload_bytes)


async def keep_upload(state: AppState, upload: Upload, owner: str) -> File:
    """Make a file of what was uploaded, as the fields of its form say. What was uploaded is removed after an error."""
    kept = state.settings.files_dir / files.new_file_id()
    try:
        purpose = _purpose(upload.fields)
        expires_at = _expires_at(upload.fields, state.settings.file_retention_s)
        await guarded(lambda: _rename(upload.path, kept))
        return await state.write(
            lambda connection: _record(connection, upload, kept, purpose, expires_at, owner)
        )
    except BaseException:
        upload.path.unlink(missing_ok=True)
        kept.unlink(missing_ok=True)
        raise


def _record(
    connection: Connection, upload: Upload, path: Path, purpose: str, expires_at: float | None, owner: str
) -> File:
    return files.create_file(
        connection,
        file_id=path.name,
        purpose=purpose,
        filename=upload.filename,
        size_bytes=upload.size_bytes,
        sha256=upload.sha256,
        path=str(path),
        expires_at=expires_at,
        owner=owner,
    )


def _rename(source: Path, target: Path) -> None:
    """Rename a file durably, by syncing the directory too."""
    source.rename(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _purpose(fields: dict[str, str]) -> str:
    purpose = fields.get("purpose")
    if purpose is None:
        raise RequestError("Missing required parameter: 'purpose'.", "purpose")
    if purpose != "batch":
        message = f"Invalid 'purpose': only 'batch' is supported, but got {purpose[:64]!r}."
        raise RequestError(message, "purpose")
    return purpose


def _expires_at(fields: dict[str, str], retention_s: float) -> float | None:
    now_s = time.time()
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return files.expiry_of(now_s, retention_s)
    if anchor != "created_at":
        message = "Invalid 'expires_after[anchor]': only 'created_at' is supported."
        raise RequestError(message, "expires_after")
    asked_s = int(seconds) if seconds and seconds.isdecimal() and len(seconds) <= MAX_NUMBER_CHARS else 0
    if not MIN_EXPIRY_S <= asked_s <= MAX_EXPIRY_S:
        message = (
            f"Invalid 'expires_after[seconds]': it must be a number from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}."
        )
        raise RequestError(message, "expires_after")
    return files.expiry_of(now_s, retention_s, asked_s)


@router.get("")
async def list_files(
    request: Request,
    purpose: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    limit: Annotated[int, Query(ge=1, le=ALL_FILES)] = ALL_FILES,
    after: str | None = None,
) -> Response:
    """List files, newest first."""
    seen = visible_owner(request)

    def query(connection: Connection) -> list[File]:
        if after is not None and files.get_file(connection, after, seen) is None:
            raise not_found("file", after, "after")
        if order == "desc":
            return files.list_files(connection, after=after, limit=limit + 1, purpose=purpose, owner=seen)
        oldest_first = files.list_files(connection, limit=ALL_FILES, purpose=purpose, owner=seen)[::-1]
        ids = [file.id for file in oldest_first]
        start = ids.index(after) + 1 if after in ids else 0
        return oldest_first[start : start + limit + 1]

    found = await app_state(request).read(query)
    return JSONResponse(list_page([file_object(file) for file in found], limit))


@router.get("/{file_id}")
async def get_file(request: Request, file_id: str) -> Response:
    """Return a file's name, size and times."""
    return JSONResponse(file_object(await _find(request, file_id)))


@router.get("/{file_id}/content")
async def download_file(request: Request, file_id: str) -> Response:
    """Stream the content. Range requests are supported, so an interrupted download can be resumed."""
    file = await _find(request, file_id)
    if not await run_in_threadpool(Path(file.path).is_file):
        raise ApiError(
            404, f"The content of the file '{file_id}' no longer exists.", param="file_id", code="not_found"
        )
    return FileResponse(file.path, media_type="application/jsonl", filename=file.filename)


@router.delete("/{file_id}")
async def delete_file(request: Request, file_id: str) -> Response:
    """Delete a file that no job needs."""

    def query(connection: Connection) -> File:
        if files.get_file(connection, file_id, visible_owner(request)) is None:
            raise not_found("file", file_id, "file_id")
        if files.file_in_use(connection, file_id):
            message = (
                f"The file '{file_id}' is the input of a batch that has not ended. Cancel that batch first."
            )
            raise ApiError(409, message, param="file_id", code="file_in_use")
        file = files.delete_file(connection, file_id)
        if file is None:
            raise not_found("file", file_id, "file_id")
        return file

    file = await app_state(request).write(query)
    # After the commit: a row without content would be a broken file, but content without a row only takes up space.
    await run_in_threadpool(Path(file.path).unlink, missing_ok=True)
    log_change(request.scope, "file.deleted", file=file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


async def _find(request: Request, file_id: str) -> File:
    seen = visible_owner(request)
    file = await app_state(request).read(lambda connection: files.get_file(connection, file_id, seen))
    if file is None:
        raise not_found("file", file_id, "file_id")
    return file


def file_object(file: File) -> dict[str, Any]:
    """Return OpenAI's `file` object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": None if file.expires_at is None else int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
