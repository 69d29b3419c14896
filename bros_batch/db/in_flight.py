"""What engines compute of a job at the moment, as their heartbeats tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from bros_batch.db.engines import list_engines
from bros_batch.db.states import ENDED_JOB
from bros_batch.db.table_rows import Job
from bros_batch.db.waiting import ENGINE_SILENT_S

MAX_COUNT = 2**53


@dataclass(frozen=True, slots=True)
class InFlight:
    """The items of a job that engines hold, how many of them have output already, and of how many tokens."""

    items: int = 0
    begun: int = 0
    output_tokens: int = 0

    def __add__(self, other: InFlight) -> InFlight:
        return InFlight(
            self.items + other.items, self.begun + other.begun, self.output_tokens + other.output_tokens
        )

    def as_json(self) -> dict[str, int]:
        return asdict(self)


def in_flight(connection: Connection, asked: Sequence[Job], now_s: float) -> dict[str, InFlight]:
    """By job id, what engines hold of those of these jobs that have not ended. It is a few seconds old."""
    wanted = {job.id for job in asked if job.status not in ENDED_JOB}
    found: dict[str, InFlight] = {}
    if not wanted:
        return found
    for engine in list_engines(connection, now_s - ENGINE_SILENT_S):
        told: Any = engine.stats.get("jobs")
        jobs: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
        for job_id in wanted & jobs.keys():
            if _are_counts(jobs[job_id]):
                found[job_id] = found.get(job_id, InFlight()) + InFlight(*jobs[job_id])
    return found


def _are_counts(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) == 3
        and all(isinstance(each, int) and 0 <= each < MAX_COUNT for each in value)
    )
