"""Queries that move items: claim for delivery, finish by result. The hot statements.

Statuses stand in them as literals: a planner that gets a parameter cannot know that a partial index covers it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, select, text, update

from bros_batch.db.connections import is_postgres
from bros_batch.db.job_control import lock_jobs, set_status
from bros_batch.db.states import ItemStatus, JobStatus
from bros_batch.db.tables import items, jobs

RUNNABLE_JOBS = 16


@dataclass(frozen=True, slots=True)
class RunnableJob:
    """What prepare needs to know of a job."""

    id: str
    endpoint: str
    model: str
    priority: int
    deadline_at: float | None
    ingest_form: str | None
    ingest_offset: int
    ingest_line: int
    defaults: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """A line taken for delivery: it is queued under this epoch now."""

    id: int
    epoch: int
    line_no: int
    custom_id: str | None
    body: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the delivery (item_id, epoch): a response body, or an error."""

    item_id: int
    epoch: int
    job_id: str
    status: ItemStatus
    result: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """What a batch of outcomes changed."""

    changed: int
    finalizing: list[str]


# Claim ----------------------------------------------------------------------------------------------------------------

_HAS_PENDING = "EXISTS (SELECT 1 FROM items WHERE items.job_id = jobs.id AND items.status = 'pending')"

_CLAIM = """
UPDATE items SET status = 'queued', epoch = epoch + 1, queued_at = :now
WHERE id IN (
    SELECT id FROM items WHERE job_id = :job_id AND status = 'pending' ORDER BY line_no LIMIT :limit {skip_locked}
)
RETURNING id, epoch, line_no, custom_id, body
"""


def models_with_work(connection: Connection) -> list[str]:
    """Models of running jobs that have pending items."""
    query = select(jobs.c.model).distinct().where(jobs.c.status == JobStatus.IN_PROGRESS, text(_HAS_PENDING))
    return list(connection.scalars(query))


def runnable_jobs(connection: Connection, model: str) -> list[RunnableJob]:
    """The most urgent running jobs of a model that have pending items: by priority, then deadline, then age."""
    query = (
        select(*(jobs.c[name] for name in RunnableJob.__slots__))
        .where(jobs.c.status == JobStatus.IN_PROGRESS, jobs.c.model == model, text(_HAS_PENDING))
        .order_by(jobs.c.priority.desc(), jobs.c.deadline_at.asc().nulls_last(), jobs.c.created_at, jobs.c.id)
        .limit(RUNNABLE_JOBS)
    )
    return [RunnableJob(**row) for row in connection.execute(query).mappings()]


def claim_items(connection: Connection, job_id: str, limit: int, now_s: float) -> list[Claim]:
    """Take up to `limit` pending items of a job, first lines first. Two callers never get the same one: each
    skips what the other has locked (SQLite has one writer at a time anyway)."""
    skip_locked = "FOR UPDATE SKIP LOCKED" if is_postgres(connection) else ""
    rows = connection.execute(
        text(_CLAIM.format(skip_locked=skip_locked)), {"job_id": job_id, "limit": limit, "now": now_s}
    )
    return sorted((Claim(*row) for row in rows), key=lambda claim: claim.line_no)


def release_claims(connection: Connection, claims: Iterable[Claim]) -> None:
    """Give back claims that were never delivered. Their epoch is spent, no attempt is."""
    rows = [{"id": claim.id, "epoch": claim.epoch} for claim in claims]
    if rows:
        connection.execute(
            text(
                "UPDATE items SET status = 'pending', queued_at = NULL "
                "WHERE id = :id AND epoch = :epoch AND status = 'queued'"
            ),
            rows,
        )


# Finish ---------------------------------------------------------------------------------------------------------------

# Arrays in PostgreSQL's binary format (`b`): in its text format each quote of each result would be escaped.
_FINISH_POSTGRES = """
UPDATE items SET status = v.status, result = v.result, error_code = v.error_code, error_message = v.error_message,
    prompt_tokens = v.prompt_tokens, output_tokens = v.output_tokens, finished_at = %(now)s
FROM unnest(
    %(ids)b::bigint[], %(epochs)b::int[], %(statuses)b::text[], %(results)b::text[],
    %(codes)b::text[], %(messages)b::text[], %(prompts)b::int[], %(outputs)b::int[]
) AS v(id, epoch, status, result, error_code, error_message, prompt_tokens, output_tokens)
WHERE items.id = v.id AND items.epoch = v.epoch AND items.status = 'queued'
RETURNING items.id
"""

_FINISH_SQLITE = text("""
UPDATE items SET status = :status, result = :result, error_code = :error_code, error_message = :error_message,
    prompt_tokens = :prompt_tokens, output_tokens = :output_tokens, finished_at = :now
WHERE id = :item_id AND epoch = :epoch AND status = 'queued'
""")


def finish_items(connection: Connection, outcomes: Sequence[Outcome], now_s: float) -> Finished:
    """End queued items, and count what changed on their jobs, in this one transaction. An outcome whose epoch is
    not the item's, or whose item is not queued, came late or twice, and changes nothing. Jobs whose last item
    ended are moved to finalizing; the caller dispatches `finalize` for them after the commit."""
    if not outcomes:
        return Finished(0, [])
    by_id = {outcome.item_id: outcome for outcome in outcomes}
    if len(by_id) < len(outcomes):  # two deliveries of one item in a batch: one after the other
        seen: set[int] = set()
        first: list[Outcome] = []
        rest: list[Outcome] = []
        for outcome in outcomes:
            (rest if outcome.item_id in seen else first).append(outcome)
            seen.add(outcome.item_id)
        one, two = finish_items(connection, first, now_s), finish_items(connection, rest, now_s)
        return Finished(one.changed + two.changed, one.finalizing + two.finalizing)

    locked = lock_jobs(connection, [outcome.job_id for outcome in outcomes])
    outcomes = [outcome for outcome in outcomes if outcome.job_id in locked]
    finish = _finish_postgres if is_postgres(connection) else _finish_sqlite
    changed = [by_id[item_id] for item_id in finish(connection, outcomes, now_s)]
    return Finished(len(changed), _count(connection, changed, now_s))


def _finish_postgres(connection: Connection, outcomes: Sequence[Outcome], now_s: float) -> list[int]:
    rows = connection.exec_driver_sql(
        _FINISH_POSTGRES,
        {
            "now": now_s,
            "ids": [outcome.item_id for outcome in outcomes],
            "epochs": [outcome.epoch for outcome in outcomes],
            "statuses": [outcome.status.value for outcome in outcomes],
            "results": [outcome.result for outcome in outcomes],
            "codes": [outcome.error_code for outcome in outcomes],
            "messages": [outcome.error_message for outcome in outcomes],
            "prompts": [outcome.prompt_tokens for outcome in outcomes],
            "outputs": [outcome.output_tokens for outcome in outcomes],
        },
    )
    return list(rows.scalars())


def _finish_sqlite(connection: Connection, outcomes: Sequence[Outcome], now_s: float) -> list[int]:
    # Asking first and writing then is safe here: BEGIN IMMEDIATE made this the only writer.
    queued: set[tuple[int, int]] = set()
    for start in range(0, len(outcomes), 500):
        ids = [outcome.item_id for outcome in outcomes[start : start + 500]]
        query = select(items.c.id, items.c.epoch).where(items.c.id.in_(ids), items.c.status == "queued")
        queued.update((item_id, epoch) for item_id, epoch in connection.execute(query))
    matching = [outcome for outcome in outcomes if (outcome.item_id, outcome.epoch) in queued]
    rows = [
        {
            "item_id": outcome.item_id,
            "epoch": outcome.epoch,
            "status": outcome.status.value,
            "result": outcome.result,
            "error_code": outcome.error_code,
            "error_message": outcome.error_message,
            "prompt_tokens": outcome.prompt_tokens,
            "output_tokens": outcome.output_tokens,
            "now": now_s,
        }
        for outcome in matching
    ]
    if rows:
        connection.execute(_FINISH_SQLITE, rows)
    return [outcome.item_id for outcome in matching]


def _count(connection: Connection, changed: Sequence[Outcome], now_s: float) -> list[str]:
    """Add outcomes to the counters of their jobs, whose rows are locked; answers the jobs that are done."""
    counts: dict[str, Counter[str]] = {}
    for outcome in changed:
        count = counts.setdefault(outcome.job_id, Counter())
        count[outcome.status.value] += 1
        count["prompt_tokens"] += outcome.prompt_tokens
        count["cached_tokens"] += outcome.cached_tokens
        count["output_tokens"] += outcome.output_tokens
    for job_id, count in counts.items():
        values = {jobs.c[name]: jobs.c[name] + number for name, number in count.items() if number}
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
    finalizing = []
    for job in lock_jobs(connection, list(counts)).values():
        if job.ended >= job.total and job.status in (JobStatus.IN_PROGRESS, JobStatus.PAUSED):
            set_status(connection, job, JobStatus.FINALIZING, now_s)
            finalizing.append(job.id)
    return finalizing


# What the recorder asks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the recorder needs to know of an item whose result came. `body` only where each line is a request."""

    job_id: str
    endpoint: str
    model: str
    ingest_form: str | None
    line_no: int
    body: str | None


def items_to_record(connection: Connection, item_ids: Sequence[int]) -> dict[int, Recorded]:
    """By item id; items that nobody knows are left out."""
    found: dict[int, Recorded] = {}
    body = case((jobs.c.ingest_form == "batch", items.c.body))
    columns = (
        items.c.id,
        items.c.job_id,
        jobs.c.endpoint,
        jobs.c.model,
        jobs.c.ingest_form,
        items.c.line_no,
        body,
    )
    for start in range(0, len(item_ids), 500):
        query = select(*columns).where(
            items.c.id.in_(item_ids[start : start + 500]), jobs.c.id == items.c.job_id
        )
        for item_id, *row in connection.execute(query):
            found[item_id] = Recorded(*row)
    return found


def defaults_of(connection: Connection, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The defaults of jobs."""
    query = select(jobs.c.id, jobs.c.defaults).where(jobs.c.id.in_(sorted(set(job_ids))))
    return {row[0]: row[1] for row in connection.execute(query)}
