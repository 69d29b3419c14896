"""Queries that take pending items and mark them as queued.

Item statuses are literals here: a planner that sees a parameter cannot know that a partial index covers it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, bindparam, func, select, text, true

from bros_batch.db.api_keys import weights_of
from bros_batch.db.connections import is_postgres
from bros_batch.db.states import JobStatus
from bros_batch.db.tables import jobs

RUNNABLE_JOBS = 16  # of each owner
MAX_RUNNABLE_JOBS = 512
CHARS_PER_TOKEN = 4.0
GUESSED_OUTPUT_TOKENS = 64
# An owner with less than this part of what another one has queued, by weight, gets its share anew.
SHORT_SHARE = 0.5
# Of the job of a background response that runs as a chat: ahead of all others.
AS_CHAT_PRIORITY = 1_000_000

_HAS_PENDING = "EXISTS (SELECT 1 FROM items WHERE items.job_id = jobs.id AND items.status = 'pending')"
HAS_QUEUED = "EXISTS (SELECT 1 FROM items WHERE items.job_id = jobs.id AND items.status = 'queued')"

_HAS_CLAIMABLE = text(
    "SELECT EXISTS (SELECT 1 FROM items WHERE job_id = :job_id AND status = 'pending' AND attempts = 0 "
    "AND (source_id IS NULL OR source_id = id))"
)
_NUM_QUEUED = text(
    "SELECT job_id, count(*) AS num_queued FROM items WHERE job_id IN :job_ids AND status = 'queued' GROUP BY job_id"
).bindparams(bindparam("job_ids", expanding=True))

_CLAIM = """
UPDATE items SET status = 'queued', epoch = epoch + 1, queued_at = :now
WHERE id IN (
    SELECT id FROM items WHERE job_id = :job_id AND status = 'pending' AND {attempts}
    AND (source_id IS NULL OR source_id = id)
    ORDER BY line_no LIMIT :limit {skip_locked}
)
RETURNING id, epoch, line_no, body, source_id
"""

_RELEASE = text(
    "UPDATE items SET status = 'pending', queued_at = NULL WHERE id = :id AND epoch = :epoch AND status = 'queued'"
)
_RELEASE_JOB = text(
    "UPDATE items SET status = 'pending', queued_at = NULL WHERE job_id = :job_id AND status = 'queued'"
)
_RENEW = text("UPDATE items SET queued_at = :now WHERE id = :id AND epoch = :epoch AND status = 'queued'")


@dataclass(frozen=True, slots=True)
class RunnableJob:
    """What prepare needs to know about a job."""

    id: str
    endpoint: str
    model: str
    priority: int
    deadline_at: float | None
    ingest_form: str | None
    ingest_offset: int
    ingest_line: int
    defaults: dict[str, Any]
    input_file_id: str
    fresh: bool
    owner: str
    succeeded: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def item_tokens(self) -> float:
        """The tokens that an item of this job has to compute, by those that have ended, or else by the length of a
        line."""
        ended = self.succeeded + self.failed
        if ended:
            return (self.prompt_tokens - self.cached_tokens + self.output_tokens) / ended
        return self.ingest_offset / max(self.ingest_line, 1) / CHARS_PER_TOKEN + GUESSED_OUTPUT_TOKENS

    @property
    def runs_as_chat(self) -> bool:
        """Whether its item is a background response that does not wait for its turn as bulk."""
        return not self.input_file_id and self.priority == AS_CHAT_PRIORITY

    @property
    def urgency(self) -> tuple[float, float]:
        return urgency(self.priority, self.deadline_at)


@dataclass(frozen=True, slots=True)
class QueuedItem:
    """An item that has just become queued, under this epoch."""

    id: int
    epoch: int
    line_no: int
    body: str
    source_id: int | None


def urgency(priority: int, deadline_at: float | None) -> tuple[float, float]:
    """How urgent a job is: by priority, then by deadline. The most urgent has the smallest value."""
    return -priority, math.inf if deadline_at is None else deadline_at


@dataclass(frozen=True, slots=True)
class Runnable:
    """Running jobs of a model with pending items, the most urgent first. `is_alone`: no other job of the model runs."""

    jobs: list[RunnableJob]
    is_alone: bool


_ORDER = (jobs.c.priority.desc(), jobs.c.deadline_at.asc().nulls_last(), jobs.c.created_at, jobs.c.id)


def _columns() -> list[Column[Any]]:
    return [jobs.c[name] for name in RunnableJob.__slots__]


def _is_running(model: str) -> tuple[ColumnElement[bool], ...]:
    return jobs.c.status == JobStatus.IN_PROGRESS, jobs.c.model == model


def runnable_jobs(connection: Connection, model: str) -> Runnable:
    """The most urgent running jobs of a model that have pending items: by priority, then deadline, then age.

    If there are several owners, these are the most urgent ones of each.
    """
    several_owners = func.min(jobs.c.owner) != func.max(jobs.c.owner)
    running = (
        select(func.count().label("number"), several_owners.label("several_owners"))
        .where(*_is_running(model))
        .subquery()
    )
    query = select(running.c.number, running.c.several_owners, *_columns()).join_from(jobs, running, true())
    query = query.where(*_is_running(model), text(_HAS_PENDING)).order_by(*_ORDER).limit(RUNNABLE_JOBS)
    found = connection.execute(query).all()
    is_alone = not found or found[0].number == 1
    if found and found[0].several_owners:
        return Runnable(_most_urgent_of_each_owner(connection, model), is_alone)
    return Runnable([RunnableJob(*row) for _, _, *row in found], is_alone)


def _most_urgent_of_each_owner(connection: Connection, model: str) -> list[RunnableJob]:
    rank = func.row_number().over(partition_by=jobs.c.owner, order_by=_ORDER).label("rank")
    ranked = select(*_columns(), rank).where(*_is_running(model), text(_HAS_PENDING)).subquery()
    found = select(*(ranked.c[name] for name in RunnableJob.__slots__)).where(ranked.c.rank <= RUNNABLE_JOBS)
    rows = connection.execute(found.order_by(ranked.c.rank).limit(MAX_RUNNABLE_JOBS))
    # In the order of their ranks, so a stable sort keeps the older of two that are as urgent first.
    return sorted((RunnableJob(*row) for row in rows), key=lambda job: job.urgency)


def outranked_jobs(
    connection: Connection, model: str, runnable: Runnable, divided_among: Callable[[], Collection[str]]
) -> list[str]:
    """Running jobs whose waiting items keep a more urgent runnable job, which has none queued, out of the stream.

    Jobs are more urgent than others of their owner only. If there are several owners, the stream is divided among them
    anew, so all that waits is taken back; also if an owner has nothing queued, or much less than others. The owners
    among whom the stream was divided last are not new: if they are more than it has room for, some have nothing in it
    until their turn comes.
    """
    if runnable.is_alone or not runnable.jobs:
        return []
    query = select(jobs.c.id, jobs.c.owner, jobs.c.priority, jobs.c.deadline_at).where(
        *_is_running(model), text(HAS_QUEUED)
    )
    queued = connection.execute(query).all()
    if not queued:
        return []
    queued_ids = {row.id for row in queued}
    most_urgent = runnable.jobs[0]
    if most_urgent.runs_as_chat and most_urgent.id not in queued_ids:
        return [row.id for row in queued if urgency(row.priority, row.deadline_at) > most_urgent.urgency]
    firsts: dict[str, RunnableJob] = {}
    for job in runnable.jobs:
        if not job.runs_as_chat:
            firsts.setdefault(job.owner, job)
    outranked = [
        row.id
        for row in queued
        if (first := firsts.get(row.owner)) is not None
        and first.id not in queued_ids
        and urgency(row.priority, row.deadline_at) > first.urgency
    ]
    queued_owners = {row.owner for row in queued}
    if len(queued_owners | firsts.keys()) < 2:
        return outranked
    without = firsts.keys() - queued_owners
    if outranked or (without and not without <= set(divided_among())):
        return sorted(queued_ids)
    late = [job for job in firsts.values() if job.id not in queued_ids]
    return sorted(queued_ids) if late and _falls_short(connection, late, queued_ids) else []


def _falls_short(connection: Connection, late: Sequence[RunnableJob], queued_ids: Collection[str]) -> bool:
    """Whether the owner of a job that has come late has much less queued than another one, by weight.

    When the stream was filled, the owner had no more, so its new job would wait behind all that others have there.
    """
    waiting = [
        RunnableJob(*row) for row in connection.execute(select(*_columns()).where(jobs.c.id.in_(queued_ids)))
    ]
    weights = weights_of(connection, {job.owner for job in waiting})
    rows = connection.execute(_NUM_QUEUED, {"job_ids": list(queued_ids)})
    counts = {row.job_id: int(row.num_queued) for row in rows}
    load = dict.fromkeys(weights, 0.0)
    for job in waiting:
        load[job.owner] += counts.get(job.id, 0) * job.item_tokens / weights[job.owner]
    short = {owner for owner, tokens in load.items() if tokens < SHORT_SHARE * max(load.values())}
    # If all of its items wait for the answers of others, there is nothing to queue.
    return any(job.owner in short and connection.scalar(_HAS_CLAIMABLE, {"job_id": job.id}) for job in late)


def stopped_jobs(connection: Connection, job_ids: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """(id, model) of paused jobs that have queued items, among these jobs or all."""
    query = select(jobs.c.id, jobs.c.model).where(jobs.c.status == JobStatus.PAUSED)
    if job_ids is None:
        query = query.where(text(HAS_QUEUED))
    else:
        query = query.where(jobs.c.id.in_(job_ids))
    return [(row.id, row.model) for row in connection.execute(query)]


def claim_items(
    connection: Connection, job_id: str, limit: int, now_s: float, *, lost_before: bool = False
) -> list[QueuedItem]:
    """Mark up to `limit` pending items of a job as queued, first lines first, and return them. These are items that
    were never lost, or with `lost_before` only others. Items that wait for the answer of another one are left out.

    Two callers never get the same item: each skips what the other has locked (and SQLite has one writer at a time).
    """
    claim = _CLAIM.format(
        attempts="attempts > 0" if lost_before else "attempts = 0",
        skip_locked="FOR UPDATE SKIP LOCKED" if is_postgres(connection) else "",
    )
    rows = connection.execute(text(claim), {"job_id": job_id, "limit": limit, "now": now_s})
    return sorted((QueuedItem(*row) for row in rows), key=lambda item: item.line_no)


def renew_claims(
    connection: Connection, claimed: Iterable[tuple[int, int]], now_s: float
) -> set[tuple[int, int]]:
    """Those of these items, given as (id, epoch), that are still queued under their epoch; they count as queued now."""
    return {
        (item_id, epoch)
        for item_id, epoch in claimed
        if connection.execute(_RENEW, {"id": item_id, "epoch": epoch, "now": now_s}).rowcount
    }


def release_items(connection: Connection, claimed: Iterable[tuple[int, int]]) -> None:
    """Return items, given as (id, epoch), that are not in the stream to pending. This counts as no attempt.

    Until an item is claimed again, which starts the next epoch, a result of this epoch is still recorded.
    """
    rows = [{"id": item_id, "epoch": epoch} for item_id, epoch in claimed]
    if rows:
        connection.execute(_RELEASE, rows)


def release_job(connection: Connection, job_id: str) -> int:
    """As `release_items`, for all queued items of a job, whose row is locked. Returns how many there were."""
    return connection.execute(_RELEASE_JOB, {"job_id": job_id}).rowcount
