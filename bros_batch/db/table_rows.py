"""What a row of each table of the database holds. Timestamps are Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from sqlalchemy import BigInteger, Double, Integer, LargeBinary, String

from bros_batch.db.columns import BigCount, Count, Key, OwnerName, ServerDefault, Word
from bros_batch.item_counts import ItemCounts


@dataclass(frozen=True, slots=True)
class File:
    """A file that was uploaded or that a job has written. Its bytes are at `path`."""

    id: Key
    purpose: Annotated[str, String(32)]
    filename: str
    bytes: Annotated[int, BigInteger()]
    sha256: Annotated[str, String(64)]
    path: str
    created_at: float
    expires_at: float | None
    owner: OwnerName = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A job with its counters. `errors` holds up to 100 entries of {code, line, message, param}."""

    id: Key
    name: str | None
    status: Word
    endpoint: Annotated[str, String(64)]
    model: str
    priority: int
    input_file_id: Key  # empty for the job of a background response, whose one item is not from a file
    output_file_id: Key | None
    error_file_id: Key | None
    defaults: dict[str, Any]
    metadata: dict[str, Any] | None
    source: dict[str, Any] | None  # the table that the documents came from: name, format, columns, id_field
    errors: list[dict[str, Any]]
    total: Count
    succeeded: Count
    failed: Count
    cancelled: Count
    expired: Count
    prompt_tokens: BigCount
    cached_tokens: BigCount
    output_tokens: BigCount
    # Items that took the answers of others, and the tokens that were not computed because of that. The three counts
    # above, and those of items, have only what was computed.
    reused: Count
    reused_prompt_tokens: BigCount
    reused_output_tokens: BigCount
    fresh: Annotated[bool, ServerDefault("false")]  # whether all of its items must be computed
    completion_window: Word
    output_expires_after_s: float | None
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
    # How far ingest has read: everything before this byte is committed as items.
    ingest_form: Word | None
    ingest_offset: BigCount
    ingest_line: Count
    # How far finalize has written: lines up to this one are in the temporary files, which have these sizes.
    written_line: Count
    written_output_bytes: BigCount
    written_error_bytes: BigCount
    # Which run of ingest or finalize holds the job, and until when it may stay silent.
    lease_token: Annotated[str, String(32)] | None
    lease_until: Annotated[float, Double(), ServerDefault("0")]
    # When retention removed its rows. Its counts stay.
    rows_removed_at: float | None
    # The URL that is called when the job has ended: empty for the server's own, None for no call.
    notify_url: str | None
    notify_key_id: Key | None  # the API key whose secret signs the calls
    announced_rows: (
        Count  # those that its file was found to have, if a limit asked for them when it was created
    )
    owner: OwnerName = ""

    @property
    def counts(self) -> ItemCounts:
        return ItemCounts(self.total, self.succeeded, self.failed, self.cancelled, self.expired)

    @property
    def has_file(self) -> bool:
        """Whether this is a job over a file, and not that of a background response."""
        return bool(self.input_file_id)

    @property
    def ended(self) -> int:
        """Number of items that have their one result or error."""
        return self.counts.ended


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a job.

    `body` is the JSON text of the request or the document as it stood in the file (None for a line that could not be
    read), and `result` is the JSON text of the response body. Both are stored as text and not in a parsed form: text is
    exactly what the client sent and will receive, a result goes into the output file without being parsed again, and
    nothing that can wait for hours in the database depends on the classes of the version that wrote it. The price is
    that ingest, prepare and record each parse a body, once.
    """

    # SQLite numbers rows by itself only in a column of the type INTEGER.
    id: Annotated[int, BigInteger().with_variant(Integer(), "sqlite")]
    job_id: Key
    line_no: int
    custom_id: str | None
    status: Word
    attempts: Count
    epoch: Count
    body: str | None
    result: str | None
    error_code: Annotated[str, String(64)] | None
    error_message: str | None
    prompt_tokens: Count
    output_tokens: Count
    queued_at: float | None
    finished_at: float | None
    # The item whose answer this one has taken or, while it is pending, waits for. Its own id if it must not take the
    # answer of another.
    source_id: Annotated[int, BigInteger()] | None


@dataclass(frozen=True, slots=True)
class ContentKey:
    """The answer to all requests with this content key, and the item that computed it.

    `choices` is the engine's output, as `engine.wire.item_messages.Choice` in msgpack, so that a response can be made
    of it as of an output that has just been computed.
    """

    key: Annotated[bytes, LargeBinary(16)]
    item_id: Annotated[int, BigInteger()]
    prompt_tokens: int
    choices: bytes


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job. `detail` has the job's counters at that time."""

    id: Annotated[int, BigInteger().with_variant(Integer(), "sqlite")]
    job_id: Key
    at: float
    kind: Word
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PaceMinute:
    """What a series had in one minute. Its id consists of the other two, so that the same minute is stored once."""

    id: Annotated[str, String(192)]
    series: Annotated[str, String(160)]
    at: float
    numbers: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EngineRow:
    """An engine's latest heartbeat."""

    id: Annotated[str, String(128)]
    host: str
    device: str
    model: str
    heartbeat_at: float
    stats: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key. The key itself is not stored, only its SHA-256 digest.

    A key without an owner sees everything. `weight` is its owner's share of bulk work; a limit of None is no limit.
    """

    id: Key
    name: str
    sha256: Annotated[str, String(64)] = field(repr=False)
    created_at: float
    revoked_at: float | None
    owner: OwnerName
    weight: Annotated[float, Double(), ServerDefault("1")]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_queued_items: int | None
    max_jobs: int | None
    notify_url: str | None
    notify_secret: str | None = field(
        repr=False
    )  # what signs webhook calls for its jobs, as the receiver has it


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A request that created a job under an idempotency key. `fingerprint` is the SHA-256 digest of its body."""

    id: Key
    fingerprint: Annotated[str, String(64)]
    job_id: Key
    created_at: float


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response that can be read, and continued, by its id. `key_id` is empty if the service needs no API keys.

    `input` is the JSON text of its own input items, and `body` that of the response object when it was stored. If
    `job_id` is set, the response runs in the background as the one item of that job, which has its result.
    `num_ancestors` and `ancestor_bytes` count the responses that it continues, and their texts.
    """

    id: Key
    key_id: Key
    previous_id: Key | None
    job_id: Key | None
    num_ancestors: int
    ancestor_bytes: Annotated[int, BigInteger()]
    input: str
    body: str
    created_at: float
    expires_at: float | None
    owner: OwnerName = ""


@dataclass(frozen=True, slots=True)
class WebhookCall:
    """The end of a job that a webhook is to be told of. The row goes once that was done, or is given up."""

    id: Key  # of the event: that of all attempts
    job_id: Key
    owner: OwnerName
    url: str  # empty: the server's own
    host: Annotated[str, String(300)]  # of the URL, to bound how many calls of one host run at once
    key_id: Key | None
    event: Word  # how the job ended
    created_at: float
    due_at: float
    num_failed: Count


@dataclass(frozen=True, slots=True)
class MetaRow:
    """A value that the database keeps about itself, such as which Redis it was last used with."""

    key: Key
    value: str
