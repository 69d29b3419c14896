"""Queries about files: create, read, list and delete them, and find those that have expired."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict

from sqlalchemy import Connection, delete, exists, insert, select, tuple_

from bros_batch.db.states import ENDED_JOB
from bros_batch.db.table_rows import File
from bros_batch.db.tables import files, jobs


def expiry_of(now_s: float, retention_s: float, asked_s: float | None = None) -> float | None:
    """When a file that is made now expires: `asked_s` later if its owner asked for that, or else after the service's
    retention. With a retention of 0 it never does (None): it stays until it is deleted."""
    if asked_s is not None:
        return now_s + asked_s
    return now_s + retention_s if retention_s > 0 else None


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def create_file(
    connection: Connection,
    *,
    purpose: str,
    filename: str,
    size_bytes: int,
    sha256: str,
    path: str,
    file_id: str | None = None,
    expires_at: float | None = None,
    owner: str = "",
    now_s: float | None = None,
) -> File:
    """Record a file whose bytes are already at `path`."""
    file = File(
        id=file_id or new_file_id(),
        purpose=purpose,
        filename=filename,
        bytes=size_bytes,
        sha256=sha256,
        path=path,
        created_at=time.time() if now_s is None else now_s,
        expires_at=expires_at,
        owner=owner,
    )
    connection.execute(insert(files), asdict(file))
    return file


def get_file(connection: Connection, file_id: str, owner: str | None = None) -> File | None:
    """The file; None if there is none, or if an owner is given and it is another's."""
    row = connection.execute(select(files).where(files.c.id == file_id)).first()
    file = File(*row) if row else None
    return None if file is not None and owner is not None and file.owner != owner else file


def list_files(
    connection: Connection,
    *,
    after: str | None = None,
    limit: int = 20,
    purpose: str | None = None,
    owner: str | None = None,
) -> list[File]:
    """Files, newest first, starting after the file `after`. Ask for one more than you show to learn whether more
    follow. With an owner, only that owner's."""
    query = select(files).order_by(files.c.created_at.desc(), files.c.id.desc()).limit(limit)
    if owner is not None:
        query = query.where(files.c.owner == owner)
    if purpose:
        query = query.where(files.c.purpose == purpose)
    if after:
        cursor = select(files.c.created_at, files.c.id).where(files.c.id == after)
        query = query.where(tuple_(files.c.created_at, files.c.id) < cursor.scalar_subquery())
    return [File(*row) for row in connection.execute(query)]


def delete_file(connection: Connection, file_id: str) -> File | None:
    """Delete a file's row and return it. The caller removes the bytes after the commit."""
    file = get_file(connection, file_id)
    if file is not None:
        connection.execute(delete(files).where(files.c.id == file_id))
    return file


def file_in_use(connection: Connection, file_id: str) -> bool:
    """Whether a job that has not ended reads this file."""
    query = select(exists().where(jobs.c.input_file_id == file_id, jobs.c.status.not_in(sorted(ENDED_JOB))))
    return bool(connection.scalar(query))


def expired_files(connection: Connection, now_s: float, limit: int = 100) -> list[File]:
    """Files past their expiry that no unfinished job reads."""
    reader = exists().where(jobs.c.input_file_id == files.c.id, jobs.c.status.not_in(sorted(ENDED_JOB)))
    query = select(files).where(files.c.expires_at < now_s, ~reader).order_by(files.c.expires_at).limit(limit)
    return [File(*row) for row in connection.execute(query)]
