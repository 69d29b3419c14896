"""Queries about the leases by which one run at a time ingests or finalizes a job."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, or_, select, update

from bros_batch.db.jobs import lock_job
from bros_batch.db.states import JobStatus
from bros_batch.db.tables import Job, jobs


class LeaseLost(RuntimeError):
    """Another worker holds the lease now, or the job's status has changed; the caller stops."""


def take_lease(
    connection: Connection, job_id: str, statuses: Sequence[JobStatus], lease_s: float, now_s: float
) -> tuple[Job, str] | None:
    """Take the lease of a job and return the job with a new token.

    None if the job is in none of these statuses or another lease on it has not run out.
    """
    token = secrets.token_hex(12)
    query = (
        update(jobs)
        .where(
            jobs.c.id == job_id,
            jobs.c.status.in_([status.value for status in statuses]),
            or_(jobs.c.lease_token.is_(None), jobs.c.lease_until < now_s),
        )
        .values(lease_token=token, lease_until=now_s + lease_s)
    )
    if not connection.execute(query).rowcount:
        return None
    return lock_job(connection, job_id), token


def hold_lease(connection: Connection, job_id: str, token: str, statuses: Sequence[JobStatus]) -> Job:
    """The job, its row locked. Raises `LeaseLost` unless the token still holds the lease in one of these statuses."""
    query = select(jobs.c.lease_token, jobs.c.status).where(jobs.c.id == job_id).with_for_update()
    row = connection.execute(query).first()
    if row is None or row[0] != token or row[1] not in [status.value for status in statuses]:
        raise LeaseLost(job_id)
    return lock_job(connection, job_id)


def extend_lease(connection: Connection, job_id: str, until: float, **progress: Any) -> None:
    """Extend the lease that `hold_lease` has just checked, and record progress."""
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(lease_until=until, **progress))


def drop_lease(connection: Connection, job_id: str, token: str) -> None:
    """Give up a lease, so that the next run can continue at once."""
    query = update(jobs).where(jobs.c.id == job_id, jobs.c.lease_token == token)
    connection.execute(query.values(lease_token=None, lease_until=0.0))


def unattended_jobs(connection: Connection, statuses: Sequence[JobStatus], now_s: float) -> list[str]:
    """Jobs in these statuses that no run holds: it was never started, or its lease ran out."""
    query = select(jobs.c.id).where(
        jobs.c.status.in_([status.value for status in statuses]),
        or_(jobs.c.lease_token.is_(None), jobs.c.lease_until < now_s),
    )
    return list(connection.scalars(query))
