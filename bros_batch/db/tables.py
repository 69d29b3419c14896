"""The tables of the database, with their indexes. Their columns are the fields of `table_rows`."""

from __future__ import annotations

from sqlalchemy import Index, MetaData, UniqueConstraint, text

from bros_batch.db.columns import table_of
from bros_batch.db.table_rows import (
    ApiKey,
    ContentKey,
    EngineRow,
    File,
    IdempotencyKey,
    Item,
    Job,
    JobEvent,
    MetaRow,
    PaceMinute,
    StoredResponse,
    WebhookCall,
)

metadata = MetaData()

# The conditions of partial indexes. SQLite uses such an index only for queries that have the same words.
IS_WITHOUT_RESULT = "status IN ('failed', 'cancelled', 'expired')"
_HAS_FILE = "input_file_id <> ''"


def _partial_index(name: str, where: str, *columns: str) -> Index:
    """An index of the rows for which the condition is true."""
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(where))


files = table_of(
    "files",
    File,
    metadata,
    Index("ix_files_created", "created_at", "id"),
    Index("ix_files_owner", "owner", "created_at", "id"),
    Index("ix_files_expires", "expires_at"),
)

jobs = table_of(
    "jobs",
    Job,
    metadata,
    # Lists of jobs, of those with one status, and both of one owner. No list shows the jobs of background responses.
    _partial_index("ix_jobs_created", _HAS_FILE, "created_at", "id"),
    _partial_index("ix_jobs_listed", _HAS_FILE, "status", "created_at", "id"),
    _partial_index("ix_jobs_owner", _HAS_FILE, "owner", "created_at", "id"),
    _partial_index("ix_jobs_owner_listed", _HAS_FILE, "owner", "status", "created_at", "id"),
    Index("ix_jobs_status", "status"),
)

# There is no foreign key to jobs: it would cost a lookup and a lock per line at ingest, and jobs are never deleted.
# AUTOINCREMENT on SQLite: if an id were used again, an old result would fit a new item.
items = table_of(
    "items",
    Item,
    metadata,
    UniqueConstraint("job_id", "line_no", name="uq_items_line"),
    # These are partial so that a million finished items do not slow down the search for the next hundred.
    _partial_index("ix_items_pending", "status = 'pending'", "job_id", "line_no"),
    _partial_index("ix_items_queued", "status = 'queued'", "job_id", "line_no"),
    _partial_index("ix_items_succeeded", "status = 'succeeded'", "job_id", "line_no"),
    _partial_index("ix_items_without_result", IS_WITHOUT_RESULT, "job_id", "line_no"),
    _partial_index("ix_items_waiting", "status = 'pending' AND source_id IS NOT NULL", "source_id"),
    sqlite_autoincrement=True,
)

job_events = table_of("job_events", JobEvent, metadata, Index("ix_job_events_job", "job_id", "id"))
pace_minutes = table_of(
    "pace_minutes",
    PaceMinute,
    metadata,
    Index("ix_pace_minutes_series", "series", "at"),
    Index("ix_pace_minutes_at", "at"),
)
content_keys = table_of("content_keys", ContentKey, metadata, Index("ix_content_keys_item", "item_id"))

engines = table_of("engines", EngineRow, metadata)
api_keys = table_of("api_keys", ApiKey, metadata, UniqueConstraint("sha256"))
idempotency_keys = table_of(
    "idempotency_keys", IdempotencyKey, metadata, Index("ix_idempotency_keys_created", "created_at")
)
responses = table_of(
    "responses",
    StoredResponse,
    metadata,
    UniqueConstraint("job_id", name="uq_responses_job"),
    Index("ix_responses_key", "key_id", "created_at"),
    Index("ix_responses_expires", "expires_at"),
)
webhook_calls = table_of("webhook_calls", WebhookCall, metadata, Index("ix_webhook_calls_due", "due_at"))
meta = table_of("meta", MetaRow, metadata)
