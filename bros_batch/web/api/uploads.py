"""Receives uploads: parses a form as it arrives, and hashes and writes its file without holding it in memory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from bros_batch.request_error import RequestError
from bros_batch.web.api.multipart_form import FormReader
from bros_batch.web.errors import disk_full
from bros_batch.web.request_body import check_declared_size, too_large

WRITE_BYTES = 1024 * 1024
FORM_OVERHEAD_BYTES = 1024 * 1024
UPLOAD_SUFFIX = ".upload"
ABANDONED_AFTER_S = 24 * 3600.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Upload:
    """A complete file, synced to disk at `path`, and the other fields of its form."""

    path: Path
    filename: str
    size_bytes: int
    sha256: str
    fields: dict[str, str]


async def receive_upload(request: Request, directory: Path, limit_bytes: int) -> Upload:
    """Receive the `file` of a multipart form into `directory`. The caller must rename or remove the result's `path`.

    Raises RequestError for an invalid form, and ApiError 413 for a file over the limit or 507 for a full disk. No file
    remains after an error.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        message = "Send the file as a multipart/form-data form with the fields 'file' and 'purpose'."
        raise RequestError(message, "file")
    check_declared_size(request, limit_bytes + FORM_OVERHEAD_BYTES, "file")
    reader = FormReader(options[b"boundary"])
    path = directory / f"{secrets.token_hex(12)}{UPLOAD_SUFFIX}"
    digest = hashlib.sha256()
    size_bytes = 0

    def write(file: BinaryIO, pieces: list[bytes]) -> None:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)

    async def flush(file: BinaryIO) -> None:
        nonlocal size_bytes
        size_bytes += reader.num_pending_bytes
        if size_bytes > limit_bytes:
            raise too_large(limit_bytes, "file")
        pieces = reader.take_file_data()
        await guarded(lambda: write(file, pieces))

    try:
        file = await guarded(lambda: _create(path))
        try:
            async for data in request.stream():
                reader.feed(data)
                if reader.num_pending_bytes >= WRITE_BYTES:
                    await flush(file)
            await flush(file)
            await guarded(lambda: _sync(file))
        finally:
            await asyncio.to_thread(_close, file)
        if not reader.complete:
            raise RequestError("The form ends too early.")
        if reader.filename is None:
            raise RequestError("The form has no file.", "file")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Upload(path, reader.filename, size_bytes, digest.hexdigest(), reader.fields)


async def guarded(work: Callable[[], T]) -> T:
    """Run `work` on a thread. A full disk becomes ApiError 507."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full() from None
        raise


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _close(file: BinaryIO) -> None:
    # Closing flushes, which fails again on a full disk; the caller then removes the file.
    with contextlib.suppress(OSError):
        file.close()


def remove_abandoned(directory: Path, now_s: float | None = None) -> None:
    """Remove incomplete uploads of servers that died."""
    now_s = time.time() if now_s is None else now_s
    for path in directory.glob(f"*{UPLOAD_SUFFIX}"):
        if path.stat().st_mtime < now_s - ABANDONED_AFTER_S:
            path.unlink(missing_ok=True)
