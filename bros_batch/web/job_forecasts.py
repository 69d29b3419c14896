"""The forecasts of running jobs, and of jobs that somebody thinks of submitting.

A job that runs is judged by its own pace, which others that share the engine have slowed down already. A job that waits
for its turn, or has just begun, is judged by the pace of the engines, the length of its rows, and what is ahead of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Connection

from bros_batch.db import engines
from bros_batch.db.forecast_inputs import RunningJob, earlier_jobs, running_jobs_of
from bros_batch.db.pending_items import urgency
from bros_batch.db.states import JobStatus
from bros_batch.db.tables import EngineRow, Job
from bros_batch.db.waiting import ENGINE_SILENT_S
from bros_batch.forecast import Estimate, Forecast, Tokens, Workload, combined, forecast
from bros_batch.web.job_rates import JobRates

# Between the end of the last row and the end of the job; and between the submission and the first row.
END_S = 0.5
BEGIN_S = 1.0
# Doubts of what is known only from elsewhere, as standard deviations of logarithms.
ENGINE_DOUBT = 0.25
EARLIER_DOUBT = 0.4
SAME_JOB_DOUBT = 0.2
GUESS_DOUBT = 0.7
CHARS_PER_TOKEN = 3.5
TOKENS_PER_FIELD = 12
OUTPUT_TOKENS = 128


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that has not been submitted: its rows, the tokens of a prompt, and the limit of an output."""

    model: str
    endpoint: str
    defaults: Mapping[str, Any]
    rows: int
    prompt_tokens: float
    max_output: float
    priority: int = 0
    deadline_at: float | None = None


def forecasts(
    connection: Connection, rates: JobRates, asked: Sequence[Job], now_s: float
) -> dict[str, Forecast]:
    """By job id, when those of these jobs are done that are running; a job of which too little is known is left out."""
    wanted = [job for job in asked if job.status == JobStatus.IN_PROGRESS]
    found = {}
    loads = {job.model: Load(connection, job.model, now_s) for job in wanted}
    for job in wanted:
        result = loads[job.model].forecast(job, rates.pace(job, now_s))
        if result is not None:
            found[job.id] = result
    return found


def forecast_of_new(connection: Connection, new: NewJob, now_s: float) -> tuple[Forecast | None, float]:
    """When a job would be done if it were submitted now, and the output tokens of a row that this assumes."""
    load = Load(connection, new.model, now_s)
    output, doubt = load.output_tokens(new.endpoint, new.defaults, new.max_output)
    work = Estimate(Tokens(new.prompt_tokens, output).work, doubt)
    order = (*urgency(new.priority, new.deadline_at), now_s, "")
    result = forecast(
        Workload(new.rows, work),
        load.pace(new.endpoint),
        ahead=load.ahead(order),
        row_s=load.row_s(output),
        overhead_s=BEGIN_S + END_S,
    )
    return result, output


class Load:
    """What the engines of a model do and have to do."""

    def __init__(self, connection: Connection, model: str, now_s: float) -> None:
        self._connection = connection
        self._model = model
        self._now_s = now_s
        self._earlier: dict[str, list[Job]] = {}

    def forecast(self, job: Job, rows_per_s: Estimate | None) -> Forecast | None:
        """When a running job is done."""
        mine = next((each for each in self._running if each.job.id == job.id), None)
        if mine is None:
            return None
        ahead: Sequence[Workload] = ()
        if rows_per_s is None or not mine.is_queued:
            rows_per_s = None
            ahead = self.ahead(mine.order)
        work, output = self._work(job)
        return forecast(
            Workload(job.total - job.ended, work),
            self.pace(job.endpoint),
            rows_per_s,
            ahead,
            self.row_s(output),
            END_S,
        )

    def ahead(self, order: tuple[float, float, float, str]) -> list[Workload]:
        """What the jobs have left whose turn is before that of a job in this place."""
        return [
            Workload(each.job.total - each.job.ended, self._work(each.job)[0])
            for each in self._running
            if each.order < order
        ]

    def pace(self, endpoint: str) -> Estimate | None:
        """The work that the engines do per second: by their heartbeats, and by how long earlier jobs took."""
        by_engines = [_pace(engine.stats) for engine in self._engines]
        total = sum(each for each in by_engines if each)
        return combined(
            [
                Estimate(total, ENGINE_DOUBT) if total else None,
                _pace_of_jobs(self._earlier_jobs(endpoint)[:5]) if self._engines else None,
            ]
        )

    def row_s(self, output_tokens: float) -> float:
        """How long an output of so many tokens takes, by the time that a token has lately taken."""
        tpots = [_number(engine.stats, "stats", "lanes", "be", "tpot", "p50_s") for engine in self._engines]
        return output_tokens * min((each for each in tpots if each), default=0.0)

    def output_tokens(
        self, endpoint: str, defaults: Mapping[str, Any], limit: float | None = None
    ) -> tuple[float, float]:
        """The tokens of an output, and the doubt about them: by earlier jobs with the same defaults, or by a guess."""
        if defaults:
            same = [job for job in self._earlier_jobs(endpoint) if job.defaults == defaults]
            computed = sum(job.succeeded - job.reused for job in same)
            if computed > 0:
                return sum(job.output_tokens for job in same) / computed, SAME_JOB_DOUBT
        if limit is None:
            given = (defaults.get(name) for name in ("max_completion_tokens", "max_tokens"))
            limit = next((float(each) for each in given if isinstance(each, int)), math.inf)
        of_schema = _schema_tokens(defaults.get("response_format"))
        if of_schema is not None:
            return min(of_schema, limit), GUESS_DOUBT
        # Few answers are as long as they may be, unless that is short.
        return min(OUTPUT_TOKENS, max(limit / 2, 1.0)), GUESS_DOUBT

    def _work(self, job: Job) -> tuple[Estimate, float]:
        """The work of a row of a job, and the tokens of its output: by the rows that have ended, if any have."""
        computed = job.ended - job.reused
        if computed > 0 and job.prompt_tokens:
            tokens = Tokens(
                max(job.prompt_tokens - job.cached_tokens, 0) / computed, job.output_tokens / computed
            )
            return Estimate(tokens.work, math.hypot(0.1, 0.5 / math.sqrt(computed))), tokens.output
        chars = job.ingest_offset / max(job.ingest_line, 1) + len(str(job.defaults.get("prompt") or ""))
        output, doubt = self.output_tokens(job.endpoint, job.defaults)
        return Estimate(Tokens(max(chars / CHARS_PER_TOKEN, 1.0), output).work, max(doubt, 0.4)), output

    @cached_property
    def _running(self) -> list[RunningJob]:
        return running_jobs_of(self._connection, self._model)

    @cached_property
    def _engines(self) -> list[EngineRow]:
        alive = engines.list_engines(self._connection, self._now_s - ENGINE_SILENT_S)
        return [each for each in alive if each.model == self._model and not each.stats.get("is_stuck")]

    def _earlier_jobs(self, endpoint: str) -> list[Job]:
        if endpoint not in self._earlier:
            self._earlier[endpoint] = earlier_jobs(self._connection, self._model, endpoint)
        return self._earlier[endpoint]


def _pace(heartbeat: Mapping[str, Any]) -> float:
    """The work of bulk that an engine does per second: its recent tokens, which consist of what all its bulk does."""
    prompt, cached, output = (
        _number(heartbeat, "stats", "lanes", "be", name)
        for name in ("prompt_tokens", "cached_tokens", "output_tokens")
    )
    all_tokens = prompt + output
    if not all_tokens:
        return 0.0
    work = Tokens(max(prompt - cached, 0.0), output).work
    return _number(heartbeat, "tokens_per_s") * work / all_tokens


def _pace_of_jobs(earlier: Iterable[Job]) -> Estimate | None:
    paces = []
    for job in earlier:
        if job.finalizing_at is None or job.in_progress_at is None:
            continue
        work = Tokens(max(job.prompt_tokens - job.cached_tokens, 0), job.output_tokens).work
        paces.append(work / max(job.finalizing_at - job.in_progress_at, 0.1))
    paces = sorted(each for each in paces if each > 0)
    return Estimate(paces[len(paces) // 2], EARLIER_DOUBT) if paces else None


def _schema_tokens(response_format: Any) -> float | None:
    """About how many tokens an answer of a schema has: its names, and a few tokens for each value."""
    if not isinstance(response_format, Mapping) or response_format.get("type") != "json_schema":
        return None
    schema = (response_format.get("json_schema") or {}).get("schema") or {}
    names = list((schema.get("properties") or {}) if isinstance(schema, Mapping) else {})
    if not names:
        return None
    return len(json.dumps(names)) / CHARS_PER_TOKEN + TOKENS_PER_FIELD * len(names)


def _number(values: Any, *path: str) -> float:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    is_number = isinstance(values, int | float) and not isinstance(values, bool) and 0 <= values < 1e12
    return float(values) if is_number else 0.0
