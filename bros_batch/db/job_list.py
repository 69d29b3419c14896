"""Queries for lists of jobs over files: pages in several orders, and how many jobs there are with each status.

A page begins after a job, not after a number of jobs, so that each page costs the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, or_, select, tuple_

from bros_batch.db.jobs import HAS_FILE
from bros_batch.db.table_rows import Job
from bros_batch.db.tables import jobs

_ENDED_AT = func.coalesce(jobs.c.completed_at, jobs.c.cancelled_at, jobs.c.expired_at, jobs.c.failed_at, 0.0)
# By name: what the list is ordered by before the time of submission, and whether the highest comes first.
ORDERS: dict[str, tuple[Sequence[ColumnElement[object]], bool]] = {
    "newest": ((), True),
    "oldest": ((), False),
    "finished": ((_ENDED_AT,), True),
    "name": ((func.lower(func.coalesce(jobs.c.name, jobs.c.id)),), False),
    "largest": ((jobs.c.total,), True),
    "failed": ((jobs.c.failed,), True),
    "tokens": ((jobs.c.prompt_tokens + jobs.c.output_tokens,), True),
}


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list has: those with a status and with a text in their id, name or model. Empty means all.

    With an owner, only that owner's.
    """

    search: str = ""
    status: str = ""
    owner: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.owner is not None:
            found.append(jobs.c.owner == self.owner)
        if self.status:
            found.append(jobs.c.status == self.status)
        if self.search:
            texts = (jobs.c.id, jobs.c.name, jobs.c.model)
            found.append(or_(*(column.icontains(self.search, autoescape=True) for column in texts)))
        return found


@dataclass(frozen=True, slots=True)
class JobsPage:
    """Jobs in the order that was asked for, and whether there are others before and after them."""

    jobs: list[Job]
    has_before: bool
    has_after: bool


def jobs_page(
    connection: Connection, which: JobFilter, order: str, limit: int, *, after: str = "", before: str = ""
) -> JobsPage:
    """Up to `limit` jobs, from those after a job, or those just before one. An unknown job is as none."""
    first, is_descending = ORDERS[order]
    keys = (*first, jobs.c.created_at, jobs.c.id)
    cursor = None
    if after or before:
        here = select(*keys).where(jobs.c.id == (after or before))
        if which.owner is not None:
            here = here.where(jobs.c.owner == which.owner)
        cursor = connection.execute(here).first()
    is_backward = bool(before) and cursor is not None
    query = select(jobs).where(HAS_FILE, *which.conditions())
    is_descending = is_descending != is_backward
    if cursor is not None:
        place = tuple_(*keys)
        query = query.where(place < tuple(cursor) if is_descending else place > tuple(cursor))
    query = query.order_by(*(key.desc() if is_descending else key.asc() for key in keys)).limit(limit + 1)
    found = [Job(*row) for row in connection.execute(query)]
    has_more = len(found) > limit
    found = found[:limit]
    if is_backward:
        return JobsPage(found[::-1], has_more, bool(found))
    return JobsPage(found, cursor is not None, has_more)


def count_by_status(connection: Connection, which: JobFilter) -> dict[str, int]:
    """How many jobs over files there are with each status, among those of a filter."""
    query = select(jobs.c.status, func.count()).where(HAS_FILE, *which.conditions())
    return {row[0]: row[1] for row in connection.execute(query.group_by(jobs.c.status))}


def next_job_ids(connection: Connection, which: JobFilter, after_id: str, limit: int) -> list[str]:
    """The next ids of jobs in the order of their ids, which no change of a job disturbs."""
    query = select(jobs.c.id).where(HAS_FILE, jobs.c.id > after_id, *which.conditions())
    return list(connection.scalars(query.order_by(jobs.c.id).limit(limit)))
