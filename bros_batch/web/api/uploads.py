"""An upload on its way to disk: parsed as it arrives, hashed as it is written, never whole in memory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from bros_batch.web.errors import ApiError
from bros_batch.web.request_body import check_declared_size, too_large

WRITE_BYTES = 1024 * 1024
MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS = 32
MAX_HEADER_BYTES = 16 * 1024
FORM_OVERHEAD_BYTES = 1024 * 1024
PART_SUFFIX = ".upload"
ABANDONED_AFTER_S = 24 * 3600.0


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that lies whole and synced at `path`, and the form's other fields."""

    path: Path
    filename: str
    size_bytes: int
    sha256: str
    fields: dict[str, str]


@dataclass(slots=True)
class Part:
    """One part of the form, being read."""

    headers: dict[str, str] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    value: bytearray = field(default_factory=bytearray)


class FormReader:
    """Turns the parser's callbacks into fields, and the bytes of the one file into `pending`."""

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.pending: list[bytes] = []
        self.pending_bytes = 0
        self.complete = False
        self._part = Part()
        self._header = bytearray()
        self._value = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise ApiError(400, f"The form cannot be read: {error}.", code="invalid_request") from None

    def _begin(self) -> None:
        self._part = Part()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header) + len(self._value) > MAX_HEADER_BYTES:
            raise ApiError(400, "The form has a header that is too long.", code="invalid_request")

    def _on_header_end(self) -> None:
        self._part.headers[self._header.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._part.headers.get("content-disposition", ""))
        self._part.name = options.get(b"name", b"").decode(errors="replace")
        if b"filename" in options:
            self._part.filename = options[b"filename"].decode(errors="replace")
        if self._part.name == "file":
            if self.filename is not None:
                raise ApiError(400, "The form has more than one file.", param="file", code="invalid_request")
            self.filename = _plain(self._part.filename or "") or "file"
        elif len(self.fields) >= MAX_FIELDS:
            raise ApiError(400, "The form has too many fields.", code="invalid_request")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == "file":
            self.pending.append(data[start:end])
            self.pending_bytes += end - start
            return
        self._part.value += data[start:end]
        if len(self._part.value) > MAX_FIELD_BYTES:
            name = self._part.name
            raise ApiError(400, f"The form's field '{name}' is too long.", param=name, code="invalid_request")

    def _end(self) -> None:
        if self._part.name != "file":
            self.fields[self._part.name] = self._part.value.decode(errors="replace")

    def _on_end(self) -> None:
        self.complete = True


async def receive_upload(request: Request, directory: Path, limit_bytes: int) -> Upload:
    """Read a multipart form with a `file` into `directory`. The caller renames `path` or removes it.

    ApiError: 400 for a form without one, 413 over the limit, 507 for a full disk; nothing is left behind then.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        message = "Send the file as a multipart/form-data form with the fields 'file' and 'purpose'."
        raise ApiError(400, message, param="file", code="invalid_request")
    check_declared_size(request, limit_bytes + FORM_OVERHEAD_BYTES, "file")
    reader = FormReader(options[b"boundary"])
    path = directory / f"{secrets.token_hex(12)}{PART_SUFFIX}"
    digest = hashlib.sha256()
    size_bytes = 0

    def write(file: BinaryIO, blocks: list[bytes]) -> None:
        for block in blocks:
            digest.update(block)
            file.write(block)

    async def flush(file: BinaryIO) -> None:
        nonlocal size_bytes
        blocks, reader.pending = reader.pending, []
        size_bytes, reader.pending_bytes = size_bytes + reader.pending_bytes, 0
        if size_bytes > limit_bytes:
            raise too_large(limit_bytes, "file")
        await _guarded(lambda: write(file, blocks))

    try:
        file = await _guarded(lambda: _create(path))
        try:
            async for chunk in request.stream():
                reader.feed(chunk)
                if reader.pending_bytes >= WRITE_BYTES:
                    await flush(file)
            await flush(file)
            await _guarded(lambda: _sync(file))
        finally:
            await asyncio.to_thread(_close, file)
        if not reader.complete:
            raise ApiError(400, "The form ends too early.", code="invalid_request")
        if reader.filename is None:
            raise ApiError(400, "The form has no file.", param="file", code="invalid_request")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Upload(path, reader.filename, size_bytes, digest.hexdigest(), reader.fields)


def _plain(name: str) -> str:
    """A file's name without control characters, and no longer than a file system would have it."""
    return "".join(filter(str.isprintable, name))[:255]


async def _guarded(work: Callable[[], T]) -> T:
    """Do `work` on a thread; a full disk becomes one clear sentence."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ApiError(
                507, "The server's disk is full; the file was not kept.", code="disk_full"
            ) from None
        raise


def _create(path: Path) -> BinaryIO:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _close(file: BinaryIO) -> None:
    # Closing flushes, which fails again on a full disk; the file is then removed anyway.
    with contextlib.suppress(OSError):
        file.close()


def remove_abandoned(directory: Path, now_s: float | None = None) -> None:
    """Remove uploads that a server which died left half done."""
    now_s = time.time() if now_s is None else now_s
    for path in directory.glob(f"*{PART_SUFFIX}"):
        if path.stat().st_mtime < now_s - ABANDONED_AFTER_S:
            path.unlink(missing_ok=True)
