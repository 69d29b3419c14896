"""The tables, and the frozen rows that the store answers with. Timestamps are unix seconds."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields
from typing import Any, Self

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

# SQLite numbers rows by itself only in a column of type INTEGER.
RowId = BigInteger().with_variant(Integer(), "sqlite")

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("purpose", String(32), nullable=False),
    Column("filename", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Index("ix_files_created", "created_at", "id"),
    Index("ix_files_expires", "expires_at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text),
    Column("status", String(16), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("defaults", JSON, nullable=False),
    Column("metadata", JSON(none_as_null=True)),
    Column("errors", JSON, nullable=False),
    Column("total", Integer, nullable=False, server_default="0"),
    Column("succeeded", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("cancelled", Integer, nullable=False, server_default="0"),
    Column("expired", Integer, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_window", String(16), nullable=False),
    Column("deadline_at", Double),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("in_progress_at", Double),
    Column("paused_at", Double),
    Column("finalizing_at", Double),
    Column("completed_at", Double),
    Column("failed_at", Double),
    Column("expired_at", Double),
    Column("cancelling_at", Double),
    Column("cancelled_at", Double),
    # Where ingest stands: everything before this byte is committed as items.
    Column("ingest_form", String(16)),
    Column("ingest_offset", BigInteger, nullable=False, server_default="0"),
    Column("ingest_line", Integer, nullable=False, server_default="0"),
    # Where finalize stands: lines up to this one are in the temporary files, which are this long.
    Column("written_line", Integer, nullable=False, server_default="0"),
    Column("written_output_bytes", BigInteger, nullable=False, server_default="0"),
    Column("written_error_bytes", BigInteger, nullable=False, server_default="0"),
    # Who ingests or finalizes now, and until when it may stay silent.
    Column("lease_token", String(32)),
    Column("lease_until", Double, nullable=False, server_default="0"),
    Index("ix_jobs_created", "created_at", "id"),
    Index("ix_jobs_status", "status"),
)

# No foreign key to jobs: it would cost a lookup and a lock a line at ingest, and jobs are never deleted.
# AUTOINCREMENT on SQLite: an id that came back would make an old result fit a new item.
items = Table(
    "items",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("job_id", String(64), nullable=False),
    Column("line_no", Integer, nullable=False),
    Column("custom_id", Text),
    Column("status", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("body", Text),
    Column("result", Text),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("prompt_tokens", Integer, nullable=False, server_default="0"),
    Column("output_tokens", Integer, nullable=False, server_default="0"),
    Column("queued_at", Double),
    Column("finished_at", Double),
    UniqueConstraint("job_id", "line_no", name="uq_items_line"),
    UniqueConstraint("job_id", "custom_id", name="uq_items_custom_id"),
    # Partial: a finished million must not slow the search for the next hundred.
    *(
        Index(name, "job_id", "line_no", postgresql_where=text(where), sqlite_where=text(where))
        for name, where in (
            ("ix_items_pending", "status = 'pending'"),
            ("ix_items_queued", "status = 'queued'"),
            ("ix_items_succeeded", "status = 'succeeded'"),
            ("ix_items_without_result", "status IN ('failed', 'cancelled', 'expired')"),
        )
    ),
    sqlite_autoincrement=True,
)

engines = Table(
    "engines",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("host", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
    Column("stats", JSON, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)

meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def new_job_id() -> str:
    return f"batch_{secrets.token_hex(12)}"


def line_id(item_id: int) -> str:
    """The `id` of an item's output or error line; the same however often it is written."""
    return f"batch_req_{item_id:024x}"


def request_id(item_id: int, epoch: int) -> str:
    """The `request_id` of the delivery that gave an item its result."""
    return f"req_{item_id:016x}{epoch:08x}"


class Row:
    """A frozen row with only the columns that its dataclass names."""

    __slots__ = ()

    @classmethod
    def of(cls, mapping: RowMapping) -> Self:
        return cls(**{field.name: mapping[field.name] for field in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class File(Row):
    """An uploaded or written file; `path` is where its bytes lie."""

    id: str
    purpose: str
    filename: str
    bytes: int
    sha256: str
    path: str
    created_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Job(Row):
    """A job with its counters. `errors` holds up to 100 of {code, line, message, param}."""

    id: str
    name: str | None
    status: str
    endpoint: str
    model: str
    priority: int
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    defaults: dict[str, Any]
    metadata: dict[str, Any] | None
    errors: list[dict[str, Any]]
    total: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    completion_window: str
    deadline_at: float | None
    created_at: float
    expires_at: float
    in_progress_at: float | None
    paused_at: float | None
    finalizing_at: float | None
    completed_at: float | None
    failed_at: float | None
    expired_at: float | None
    cancelling_at: float | None
    cancelled_at: float | None
    ingest_form: str | None
    ingest_offset: int
    ingest_line: int
    written_line: int
    written_output_bytes: int
    written_error_bytes: int

    @property
    def ended(self) -> int:
        """Lines that have their one result or error."""
        return self.succeeded + self.failed + self.cancelled + self.expired


@dataclass(frozen=True, slots=True)
class Item(Row):
    """One line. `body` is the request's JSON as it came (None for a line that could not be read), `result` the
    response body's as it goes out."""

    id: int
    job_id: str
    line_no: int
    custom_id: str | None
    status: str
    attempts: int
    epoch: int
    body: str | None
    result: str | None
    error_code: str | None
    error_message: str | None
    prompt_tokens: int
    output_tokens: int
    queued_at: float | None
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class EngineRow(Row):
    """An engine's last heartbeat."""

    id: str
    host: str
    device: str
    model: str
    heartbeat_at: float
    stats: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ApiKey(Row):
    """A key's name and times; the key itself is nowhere, only its SHA-256."""

    id: str
    name: str
    created_at: float
    revoked_at: float | None
