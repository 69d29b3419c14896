"""Why a running job has nothing in the queue: the sentence that its owner reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from bros_batch.db import engines
from bros_batch.db.pending_items import HAS_QUEUED, urgency
from bros_batch.db.states import JobStatus
from bros_batch.db.table_rows import Job
from bros_batch.db.tables import jobs

# Rows of engines are renewed every second; a busy database may take longer.
ENGINE_SILENT_S = 30.0


@dataclass(frozen=True, slots=True)
class _Running:
    """A running job as the others see it."""

    id: str
    owner: str
    model: str
    priority: int
    order: tuple[float, float, float, str]
    lines_left: int
    is_queued: bool


def waiting_reasons(connection: Connection, asked: Sequence[Job], now_s: float) -> dict[str, str]:
    """By job id, what those of these jobs wait for that are in progress but of which nothing is queued."""
    wanted = [job for job in asked if job.status == JobStatus.IN_PROGRESS]
    if not wanted:
        return {}
    running = _running_jobs(connection)
    alive = engines.list_engines(connection, now_s - ENGINE_SILENT_S)
    served = {engine.model for engine in alive if not engine.stats.get("is_stuck")}
    reasons = {}
    for job in wanted:
        reason = _reason(job, running, served)
        if reason is not None:
            reasons[job.id] = reason
    return reasons


def _running_jobs(connection: Connection) -> dict[str, _Running]:
    left = jobs.c.total - jobs.c.succeeded - jobs.c.failed - jobs.c.cancelled - jobs.c.expired
    columns = (
        jobs.c.id,
        jobs.c.owner,
        jobs.c.model,
        jobs.c.priority,
        jobs.c.deadline_at,
        jobs.c.created_at,
        left,
    )
    query = select(*columns, text(HAS_QUEUED)).where(jobs.c.status == JobStatus.IN_PROGRESS)
    found = {}
    for row in connection.execute(query):
        job_id, owner, model, priority, deadline_at, created_at, lines_left, is_queued = row
        order = (*urgency(priority, deadline_at), created_at, job_id)
        found[job_id] = _Running(job_id, owner, model, priority, order, lines_left, bool(is_queued))
    return found


def _reason(job: Job, running: dict[str, _Running], served: set[str]) -> str | None:
    me = running.get(job.id)
    if me is None:
        return None
    if me.model not in served:
        return f"No engine is running for {me.model}."
    if me.is_queued:
        return None
    # Jobs of other owners are not ahead of it: it has a share of its own.
    rivals = (other for other in running.values() if (other.owner, other.model) == (me.owner, me.model))
    ahead = [other for other in rivals if other.order < me.order]
    if not ahead:
        return "Its first lines are being prepared."
    lines = sum(other.lines_left for other in ahead)
    jobs_ahead = "1 job" if len(ahead) == 1 else f"{len(ahead)} jobs"
    if all(other.priority > me.priority for other in ahead):
        jobs_ahead += " of higher priority"
    return f"Waiting behind {jobs_ahead} ({lines:,} {'line' if lines == 1 else 'lines'} left)."
