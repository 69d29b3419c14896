"""Queries about what a forecast depends on: the running jobs of a model, and how earlier ones went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from bros_batch.db.connections import IDS_PER_QUERY, is_among
from bros_batch.db.engines import list_engines
from bros_batch.db.pending_items import HAS_QUEUED, urgency
from bros_batch.db.states import JobStatus
from bros_batch.db.table_rows import Job
from bros_batch.db.tables import content_keys, items, jobs

# Of jobs that wait behind so many others, only the first ones count.
MAX_RUNNING = 500
EARLIER_JOBS = 30
SAMPLED_ROWS = 256


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A running job, and whether some of its items are queued for an engine."""

    job: Job
    is_queued: bool

    @property
    def order(self) -> tuple[float, float, float, str]:
        """The smaller, the earlier is its turn."""
        return (*urgency(self.job.priority, self.job.deadline_at), self.job.created_at, self.job.id)


def running_jobs_of(connection: Connection, model: str) -> list[RunningJob]:
    """The running jobs of a model that have unfinished items, the most urgent first."""
    query = (
        select(jobs, text(HAS_QUEUED))
        .where(jobs.c.status == JobStatus.IN_PROGRESS, jobs.c.model == model)
        .order_by(jobs.c.priority.desc(), jobs.c.deadline_at.asc().nulls_last(), jobs.c.created_at, jobs.c.id)
        .limit(MAX_RUNNING)
    )
    found = (RunningJob(Job(*row[:-1]), bool(row[-1])) for row in connection.execute(query))
    return [each for each in found if each.job.total > each.job.ended]


def earlier_jobs(connection: Connection, model: str, endpoint: str) -> list[Job]:
    """The latest completed jobs over files of a model and an endpoint whose items were computed."""
    query = (
        select(jobs)
        .where(
            jobs.c.status == JobStatus.COMPLETED,
            text("input_file_id <> ''"),
            jobs.c.model == model,
            jobs.c.endpoint == endpoint,
            jobs.c.prompt_tokens > 0,
        )
        .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
        .limit(EARLIER_JOBS)
    )
    return [Job(*row) for row in connection.execute(query)]


def output_lengths(connection: Connection, job_id: str) -> list[int]:
    """The output tokens of the first rows of a job that have been computed."""
    query = (
        select(items.c.output_tokens)
        .where(items.c.job_id == job_id, text("status = 'succeeded'"), items.c.prompt_tokens > 0)
        .order_by(items.c.line_no)
        .limit(SAMPLED_ROWS)
    )
    return list(connection.execute(query).scalars())


def stored_keys(connection: Connection, keys: Sequence[bytes]) -> set[bytes]:
    """Those of some content keys whose answers are stored."""
    found: set[bytes] = set()
    for start in range(0, len(keys), IDS_PER_QUERY):
        query = select(content_keys.c.key).where(
            is_among(connection, content_keys.c.key, keys[start : start + IDS_PER_QUERY]),
            items.c.id == content_keys.c.item_id,
        )
        found.update(connection.execute(query).scalars())
    return found


def weights_of(connection: Connection, model: str) -> str:
    """What the latest engine of a model computes with; empty if that is not known."""
    seen = [engine for engine in list_engines(connection, 0.0) if engine.model == model]
    latest = max(seen, key=lambda engine: engine.heartbeat_at, default=None)
    return "" if latest is None else str(latest.stats.get("weights") or "")
