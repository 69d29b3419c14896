"""Queries about the leases that let only one run at a time ingest or finalize a job."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, select, update

from bros_batch.db.jobs import lock_job
from bros_batch.db.states import JobStatus
from bros_batch.db.table_rows import Job
from bros_batch.db.tables import jobs

# The columns of a job that no run holds.
NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_until": 0.0}


@dataclass(frozen=True, slots=True)
class Lease:
    """A run's right to work on a job while the job has one of these statuses."""

    job_id: str
    token: str
    statuses: Sequence[JobStatus]


class LeaseLost(RuntimeError):
    """Another run holds the lease now, or the job's status has changed. The caller stops."""


def take_lease(
    connection: Connection, job_id: str, statuses: Sequence[JobStatus], lease_s: float, now_s: float
) -> tuple[Job, Lease] | None:
    """Take the lease of a job if it has one of these statuses and no run holds it; None otherwise."""
    lease = Lease(job_id, secrets.token_hex(12), statuses)
    query = (
        update(jobs)
        .where(
            jobs.c.id == job_id,
            jobs.c.status.in_([status.value for status in statuses]),
            _is_free(lease_s, now_s),
        )
        .values(lease_token=lease.token, lease_until=now_s + lease_s)
    )
    if not connection.execute(query).rowcount:
        return None
    return lock_job(connection, job_id), lease


def hold_lease(connection: Connection, lease: Lease) -> Job:
    """The job, its row locked until the end of the transaction. Raises `LeaseLost` if the lease is no longer valid."""
    query = select(jobs.c.lease_token, jobs.c.status).where(jobs.c.id == lease.job_id).with_for_update()
    row = connection.execute(query).first()
    if row is None or row[0] != lease.token or row[1] not in [status.value for status in lease.statuses]:
        raise LeaseLost(lease.job_id)
    return lock_job(connection, lease.job_id)


def extend_lease(connection: Connection, lease: Lease, until: float, **progress: Any) -> None:
    """Extend a lease that `hold_lease` has just checked, and record progress."""
    query = update(jobs).where(jobs.c.id == lease.job_id)
    connection.execute(query.values(lease_until=until, **progress))


def drop_lease(connection: Connection, lease: Lease) -> None:
    """Give up a lease, so that the next run can continue at once."""
    query = update(jobs).where(jobs.c.id == lease.job_id, jobs.c.lease_token == lease.token)
    connection.execute(query.values(NO_LEASE))


def unattended_jobs(
    connection: Connection, statuses: Sequence[JobStatus], lease_s: float, now_s: float
) -> list[str]:
    """Jobs with these statuses that no run holds: no run has started, or its lease has expired."""
    query = select(jobs.c.id).where(
        jobs.c.status.in_([status.value for status in statuses]),
        _is_free(lease_s, now_s),
    )
    return list(connection.scalars(query))


def _is_free(lease_s: float, now_s: float) -> ColumnElement[bool]:
    """Whether no run holds a job. A lease that ends much later than one taken now is from before the clock was set
    back; the clocks of two hosts may differ by as much as a lease lasts."""
    expired = or_(jobs.c.lease_until < now_s, jobs.c.lease_until > now_s + 2 * lease_s)
    return or_(jobs.c.lease_token.is_(None), expired)
