"""Queries that end items with their results and count them on their jobs.

Item statuses are literals here: a planner that sees a parameter cannot know that a partial index covers it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, case, select, text, update

from bros_batch.db.connections import IDS_PER_QUERY, is_among, is_postgres
from bros_batch.db.content_keys import set_sources
from bros_batch.db.job_events import add_event
from bros_batch.db.jobs import lock_job, set_status
from bros_batch.db.packed_arrays import bigints, integers, texts
from bros_batch.db.states import ItemStatus, JobStatus
from bros_batch.db.tables import items, jobs
from bros_batch.item_counts import ItemCounts


@dataclass(frozen=True, slots=True)
class FinishedItem:
    """How an item that was queued under `epoch` ended: with the text of a response body, or with an error."""

    id: int
    epoch: int
    job_id: str
    status: ItemStatus
    result: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    # Tokens that were taken from earlier answers, which the above do not count. If all were, `source_id` is the
    # item that had them.
    reused_prompt_tokens: int = 0
    reused_output_tokens: int = 0
    source_id: int | None = None


@dataclass(frozen=True, slots=True)
class FinishResult:
    """What `finish_items` changed: the number of items, and the jobs whose last item was among them."""

    changed: int
    finalizing: list[str]


@dataclass(frozen=True, slots=True)
class ItemOrigin:
    """What record needs to know about an item whose result has arrived.

    `body` is set only in jobs of batch lines, where each line is a request of its own.
    """

    job_id: str
    endpoint: str
    model: str
    ingest_form: str | None
    body: str | None


def item_origins(connection: Connection, item_ids: Sequence[int]) -> dict[int, ItemOrigin]:
    """The origins of items by item id, without those that do not exist."""
    found: dict[int, ItemOrigin] = {}
    body = case((jobs.c.ingest_form == "batch", items.c.body))
    columns = (items.c.id, items.c.job_id, jobs.c.endpoint, jobs.c.model, jobs.c.ingest_form, body)
    for start in range(0, len(item_ids), IDS_PER_QUERY):
        query = select(*columns).where(
            is_among(connection, items.c.id, item_ids[start : start + IDS_PER_QUERY]),
            jobs.c.id == items.c.job_id,
        )
        for item_id, *row in connection.execute(query):
            found[item_id] = ItemOrigin(*row)
    return found


def defaults_of(connection: Connection, job_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The defaults of jobs by job id."""
    query = select(jobs.c.id, jobs.c.defaults).where(jobs.c.id.in_(sorted(set(job_ids))))
    return {row[0]: row[1] for row in connection.execute(query)}


def finish_items(connection: Connection, finished: Sequence[FinishedItem], now_s: float) -> FinishResult:
    """End items, and add what changed to the counters of their jobs in this same transaction.

    A result whose epoch is not the item's, or whose item has ended, came late or twice and changes nothing. An item
    that was taken back from the stream after an engine had read it is pending, and its result counts. Jobs
    whose last item ended move to finalizing; the caller dispatches `finalize` for them after the commit.
    """
    if not finished:
        return FinishResult(0, [])
    by_id = {item.id: item for item in finished}
    if len(by_id) < len(finished):  # two results of one item in a group: first one, then the other
        seen: set[int] = set()
        first: list[FinishedItem] = []
        rest: list[FinishedItem] = []
        for item in finished:
            (rest if item.id in seen else first).append(item)
            seen.add(item.id)
        one, two = finish_items(connection, first, now_s), finish_items(connection, rest, now_s)
        return FinishResult(one.changed + two.changed, one.finalizing + two.finalizing)

    job_ids = sorted({item.job_id for item in finished})
    query = select(jobs.c.id).where(jobs.c.id.in_(job_ids)).order_by(jobs.c.id).with_for_update()
    locked = set(connection.scalars(query))
    finished = [item for item in finished if item.job_id in locked]
    finish = _finish_postgres if is_postgres(connection) else _finish_sqlite
    changed = [by_id[item_id] for item_id in finish(connection, finished, now_s)]
    set_sources(connection, [(item.id, item.source_id) for item in changed if item.source_id is not None])
    return FinishResult(len(changed), _count(connection, changed, now_s))


_FINISH_POSTGRES = """
UPDATE items SET status = v.status, result = v.result, error_code = v.error_code, error_message = v.error_message,
    prompt_tokens = v.prompt_tokens, output_tokens = v.output_tokens, finished_at = %(now)s
FROM unnest(
    %(ids)s::bigint[], %(epochs)s::int[], %(statuses)s::text[], %(results)s::text[],
    %(codes)s::text[], %(messages)s::text[], %(prompts)s::int[], %(outputs)s::int[]
) AS v(id, epoch, status, result, error_code, error_message, prompt_tokens, output_tokens)
WHERE items.id = v.id AND items.epoch = v.epoch AND items.status IN ('queued', 'pending')
RETURNING items.id
"""

_FINISH_SQLITE = text("""
UPDATE items SET status = :status, result = :result, error_code = :error_code, error_message = :error_message,
    prompt_tokens = :prompt_tokens, output_tokens = :output_tokens, finished_at = :now
WHERE id = :id AND epoch = :epoch AND status IN ('queued', 'pending')
""")


def _finish_postgres(connection: Connection, finished: Sequence[FinishedItem], now_s: float) -> list[int]:
    rows = connection.exec_driver_sql(
        _FINISH_POSTGRES,
        {
            "now": now_s,
            "ids": bigints([item.id for item in finished]),
            "epochs": integers([item.epoch for item in finished]),
            "statuses": texts([item.status.value for item in finished]),
            "results": texts([item.result for item in finished]),
            "codes": texts([item.error_code for item in finished]),
            "messages": texts([item.error_message for item in finished]),
            "prompts": integers([item.prompt_tokens for item in finished]),
            "outputs": integers([item.output_tokens for item in finished]),
        },
    )
    return list(rows.scalars())


def _finish_sqlite(connection: Connection, finished: Sequence[FinishedItem], now_s: float) -> list[int]:
    # To read first and write afterwards is safe here: BEGIN IMMEDIATE made this the only writer.
    unfinished: set[tuple[int, int]] = set()
    for start in range(0, len(finished), IDS_PER_QUERY):
        ids = [item.id for item in finished[start : start + IDS_PER_QUERY]]
        is_unfinished = items.c.status.in_(("queued", "pending"))
        query = select(items.c.id, items.c.epoch).where(items.c.id.in_(ids), is_unfinished)
        unfinished.update((item_id, epoch) for item_id, epoch in connection.execute(query))
    matching = [item for item in finished if (item.id, item.epoch) in unfinished]
    rows = [
        {
            "id": item.id,
            "epoch": item.epoch,
            "status": item.status.value,
            "result": item.result,
            "error_code": item.error_code,
            "error_message": item.error_message,
            "prompt_tokens": item.prompt_tokens,
            "output_tokens": item.output_tokens,
            "now": now_s,
        }
        for item in matching
    ]
    if rows:
        connection.execute(_FINISH_SQLITE, rows)
    return [item.id for item in matching]


TOKEN_COUNTS = (
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "reused_prompt_tokens",
    "reused_output_tokens",
)
_COUNTS = tuple(jobs.c[field.name] for field in fields(ItemCounts))


def _count(connection: Connection, changed: Sequence[FinishedItem], now_s: float) -> list[str]:
    """Add finished items to the counters of their jobs, whose rows are locked. Returns the jobs that now finalize."""
    by_job: dict[str, list[FinishedItem]] = {}
    for item in changed:
        by_job.setdefault(item.job_id, []).append(item)
    finalizing = []
    for job_id, ended in by_job.items():
        count = Counter([item.status.value for item in ended])
        count["reused"] = sum([item.source_id is not None for item in ended])
        for name in TOKEN_COUNTS:
            count[name] = sum(map(attrgetter(name), ended))
        values = {jobs.c[name]: jobs.c[name] + number for name, number in count.items() if number}
        query = update(jobs).where(jobs.c.id == job_id).values(values).returning(jobs.c.status, *_COUNTS)
        status, *numbers = connection.execute(query).one()
        now = ItemCounts(*numbers)
        if now.succeeded and now.succeeded == count[ItemStatus.SUCCEEDED.value]:
            add_event(connection, lock_job(connection, job_id), "first_result", now_s)
        if now.ended >= now.total and status in (JobStatus.IN_PROGRESS, JobStatus.PAUSED):
            set_status(connection, lock_job(connection, job_id), JobStatus.FINALIZING, now_s)
            finalizing.append(job_id)
    return finalizing
