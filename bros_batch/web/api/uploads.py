"""Receives uploads: parses a form as it arrives, and hashes and writes its file without holding it in memory.

The file is created when its first bytes arrive, and removed when the client stops sending.
"""

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
from bros_batch.web.request_body import body_pieces, check_declared_size, too_large

WRITE_BYTES = 256 * 1024
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
    try:
        async with contextlib.AsyncExitStack() as stack:
            received = ReceivedFile(path, limit_bytes)
            stack.push_async_callback(received.close)
            num_bytes = 0
            async for data in body_pieces(request):
                num_bytes += len(data)
                if num_bytes > limit_bytes + FORM_OVERHEAD_BYTES:
                    raise too_large(limit_bytes, "file")
                reader.feed(data)
                if reader.num_pending_bytes >= WRITE_BYTES:
                    await received.write(reader.take_file_data())
            if not reader.complete:
                raise RequestError("The form ends too early.")
            if reader.filename is None:
                raise RequestError("The form has no file.", "file")
            await received.write(reader.take_file_data())
            await received.sync()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Upload(path, reader.filename, received.size_bytes, received.sha256, reader.fields)


class ReceivedFile:
    """A file that is written and hashed on threads. A full disk raises ApiError 507."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    async def write(self, pieces: list[bytes]) -> None:
        """Append `pieces`. Raises ApiError 413 if the file becomes too large."""
        self.size_bytes += sum(map(len, pieces))
        if self.size_bytes > self._limit_bytes:
            raise too_large(self._limit_bytes, "file")
        await guarded(lambda: self._append(pieces))

    async def sync(self) -> None:
        """Write everything to the disk itself."""
        await guarded(self._sync)

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _append(self, pieces: list[bytes]) -> None:
        if self._file is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        for piece in pieces:
            self._digest.update(piece)
            self._file.write(piece)

    def _sync(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())

    def _close(self) -> None:
        # Closing flushes, which fails again on a full disk; the caller then removes the file.
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()


async def guarded(work: Callable[[], T]) -> T:
    """Run `work` on a thread. A full disk becomes ApiError 507."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full() from None
        raise


def remove_abandoned(directory: Path, now_s: float | None = None) -> None:
    """Remove incomplete uploads of servers that died."""
    now_s = time.time() if now_s is None else now_s
    for path in directory.glob(f"*{UPLOAD_SUFFIX}"):
        if path.stat().st_mtime < now_s - ABANDONED_AFTER_S:
            path.unlink(missing_ok=True)
