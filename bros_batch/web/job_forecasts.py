"""The forecasts of running jobs, and of jobs that somebody thinks of submitting.

A job costs seconds by its tokens, at the pace of the engine (`engine_pace`). A job that runs is also judged by its own
pace, which others that share the engine have slowed down already; rows that the engine has begun count as far as
they are. A job that waits for its turn has what is ahead of it to wait for. The interval is as wide as the errors of
earlier forecasts say (`forecast_log`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Connection

from bros_batch.db import engines
from bros_batch.db.forecast_errors import read_errors
from bros_batch.db.forecast_inputs import RunningJob, earlier_jobs, running_jobs_of
from bros_batch.db.pending_items import urgency
from bros_batch.db.states import JobStatus
from bros_batch.db.tables import EngineRow, Job
from bros_batch.db.waiting import ENGINE_SILENT_S
from bros_batch.forecast import Estimate, Forecast, Workload, forecast
from bros_batch.web.engine_pace import OUTPUT_WEIGHT, EnginePace, TokenCost
from bros_batch.web.job_rates import JobRates

# Between the submission and the first row; and between the end of the last row and the end of the job.
BEGIN_S = 0.8
END_S = 0.5
# Doubts of what is known only from elsewhere, as standard deviations of logarithms.
COST_DOUBT = 0.35
SAME_JOB_DOUBT = 0.1
GUESS_DOUBT = 0.7
CHARS_PER_TOKEN = 3.5
TOKENS_PER_FIELD = 12
OUTPUT_TOKENS = 128
# The stages of a job, by the share of its rows that have ended.
STAGES = ((0.5, "half"), (0.1, "tenth"), (0.0, "begun"))


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


def stage_of(job: Job) -> str:
    """How far a job is; forecasts of one stage are wrong in a similar way."""
    share = job.ended / max(job.total, 1)
    return next((name for least, name in STAGES if job.ended and share >= least), "new")


def forecasts(
    connection: Connection, rates: JobRates, asked: Sequence[Job], now_s: float
) -> dict[str, Forecast]:
    """By job id, when those of these jobs are done that are running; a job of which too little is known is left out."""
    raw = raw_forecasts(connection, rates, asked, now_s)
    errors = read_errors(connection) if raw else {}
    stages = {job.id: stage_of(job) for job in asked}
    return {job_id: each.calibrated(errors.get(stages[job_id], ())) for job_id, each in raw.items()}


def raw_forecasts(
    connection: Connection, rates: JobRates, asked: Sequence[Job], now_s: float
) -> dict[str, Forecast]:
    """The forecasts before earlier errors are considered."""
    wanted = [job for job in asked if job.status == JobStatus.IN_PROGRESS]
    found = {}
    loads = {job.model: Load(connection, rates.engine, job.model, now_s) for job in wanted}
    for job in wanted:
        result = loads[job.model].forecast(job, rates)
        if result is not None:
            found[job.id] = result
    return found


def forecast_of_new(
    connection: Connection, rates: JobRates, new: NewJob, now_s: float
) -> tuple[Forecast | None, float]:
    """When a job would be done if it were submitted now, and the output tokens of a row that this assumes."""
    load = Load(connection, rates.engine, new.model, now_s)
    output, doubt = load.output_tokens(new.endpoint, new.defaults, new.max_output)
    cost = load.cost
    if cost is None:
        return None, output
    order = (*urgency(new.priority, new.deadline_at), now_s, "")
    result = forecast(
        Workload(new.rows, Estimate(cost.seconds(new.prompt_tokens, output), doubt)),
        load.pace,
        ahead=load.ahead(order),
        row_s=load.row_s(output),
        overhead_s=BEGIN_S + END_S,
    )
    if result is not None:
        result = result.calibrated(read_errors(connection).get("new", ()))
    return result, output


@dataclass(frozen=True, slots=True)
class InFlight:
    """The rows of a job that engines have begun, and the output tokens that each of them has on average."""

    rows: float
    output_tokens: float


@dataclass(frozen=True, slots=True)
class Row:
    """The tokens of a row of a job that must be computed, and the doubt about what they cost."""

    prompt: float
    output: float
    doubt: float


class Load:
    """What the engines of a model do and have to do."""

    def __init__(self, connection: Connection, engine: EnginePace, model: str, now_s: float) -> None:
        self._connection = connection
        self._engine = engine
        self._model = model
        self._now_s = now_s
        self._earlier: dict[str, list[Job]] = {}

    def forecast(self, job: Job, rates: JobRates) -> Forecast | None:
        """When a running job is done."""
        mine = next((each for each in self._running if each.job.id == job.id), None)
        if mine is None:
            return None
        cost, begun = self.cost, self._in_flight(mine)
        row = self._row(job, begun)
        # The rows in flight have their prompts behind them and a part of their outputs.
        work_s, share = 1.0, 0.5
        if cost is not None:
            work_s = cost.seconds(row.prompt, row.output)
            if begun.output_tokens:
                share = min(cost.seconds(row.prompt, begun.output_tokens) / work_s, 0.9)
        own, ahead = None, self.ahead(mine.order)
        if mine.is_queued and job.ended:
            ahead = []
            own = rates.pace(job, self._now_s)
            if own is not None:
                # The first rows begin together and end together.
                own = Estimate(own.median, math.hypot(own.doubt, begun.rows / job.ended))
        left, latency_s = job.total - job.ended, self.row_s(row.output)
        if begun.rows >= left:
            latency_s *= 1 - share
        return forecast(
            Workload(max(left - begun.rows * share, 0.0), Estimate(work_s, row.doubt)),
            self.pace,
            own,
            ahead,
            latency_s,
            END_S + (0 if begun.rows or job.ended else BEGIN_S / 2),
        )

    def ahead(self, order: tuple[float, float, float, str]) -> list[Workload]:
        """What the jobs have left whose turn is before that of a job in this place."""
        found = []
        for each in self._running:
            if each.order < order and self.cost is not None:
                begun = self._in_flight(each)
                row = self._row(each.job, begun)
                left = each.job.total - each.job.ended - begun.rows / 2
                found.append(Workload(left, Estimate(self.cost.seconds(row.prompt, row.output), row.doubt)))
        return found

    @cached_property
    def cost(self) -> TokenCost | None:
        """What tokens cost on an engine: as it was seen to compute, or else by the heartbeats; None without engines."""
        if not self._engines:
            return None
        seen = self._engine.cost()
        if seen is not None:
            return seen
        paces = [each for each in (_pace(engine.stats) for engine in self._engines) if each]
        if not paces:
            return None
        pace = sum(paces) / len(paces)
        return TokenCost(1 / pace, OUTPUT_WEIGHT / pace, COST_DOUBT)

    @property
    def pace(self) -> Estimate | None:
        """How many seconds of the work of an engine all engines do in a second."""
        return None if self.cost is None else Estimate(float(len(self._engines)), self.cost.doubt)

    def _in_flight(self, mine: RunningJob) -> InFlight:
        """The rows of a running job that engines have begun: the most urgent jobs have what there is."""
        free = running = self._engine.running * len(self._engines)
        for each in self._running:
            rows = min(free, each.job.total - each.job.ended) if each.is_queued else 0.0
            if each.job.id == mine.job.id:
                return InFlight(
                    rows, self._engine.unfinished_tokens / self._engine.running if running else 0.0
                )
            free -= rows
        return InFlight(0.0, 0.0)

    def row_s(self, output_tokens: float) -> float:
        """How long an output of so many tokens takes, by the time that a token has lately taken."""
        tpots = [_number(_be(engine.stats), "tpot", "p50_s") for engine in self._engines]
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

    def _row(self, job: Job, begun: InFlight) -> Row:
        """The row of a job: by those that have ended, if any have, and by what was to be expected of it.

        Short outputs end first: while many rows are in flight, those that have ended say less.
        """
        prompt = self._prompt_tokens(job)
        output, doubt = self.output_tokens(job.endpoint, job.defaults)
        computed = job.ended - job.reused
        if computed <= 0 or not job.prompt_tokens:
            return Row(prompt, output, math.hypot(doubt, 0.2))
        prompt = max(job.prompt_tokens - job.cached_tokens, 0) / computed
        expected = (begun.rows + 2) * (SAME_JOB_DOUBT / doubt) ** 2
        own = job.output_tokens / computed
        mean = (own * computed + output * expected) / (computed + expected)
        own_doubt = math.hypot(0.05, 0.5 * (1 + begun.rows / computed) / math.sqrt(computed))
        return Row(prompt, mean, min(math.hypot(doubt, 0.1), own_doubt))

    def _prompt_tokens(self, job: Job) -> float:
        """The tokens of a prompt, by the size of the rows: as in earlier jobs with the same defaults, or by a guess."""
        size = job.ingest_offset / max(job.ingest_line, 1)
        same = [
            each
            for each in self._earlier_jobs(job.endpoint)
            if each.defaults == job.defaults and job.defaults
        ]
        tokens = sum(max(each.prompt_tokens - each.cached_tokens, 0) for each in same if not each.reused)
        read = sum(each.ingest_offset for each in same if not each.reused)
        if tokens and read:
            return size * tokens / read
        return max((size + len(str(job.defaults.get("prompt") or ""))) / CHARS_PER_TOKEN, 1.0)

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


def _be(heartbeat: Mapping[str, Any]) -> Any:
    stats = heartbeat.get("stats")
    lanes = stats.get("lanes") if isinstance(stats, Mapping) else None
    return lanes.get("be") if isinstance(lanes, Mapping) else None


def _pace(heartbeat: Mapping[str, Any]) -> float:
    """The work of bulk that an engine does per second, in tokens of a prompt: its recent tokens, which consist of what
    all its bulk does."""
    prompt, cached, output = (
        _number(_be(heartbeat), name) for name in ("prompt_tokens", "cached_tokens", "output_tokens")
    )
    all_tokens = prompt + output
    if not all_tokens:
        return 0.0
    work = max(prompt - cached, 0.0) + OUTPUT_WEIGHT * output
    return _number(heartbeat, "tokens_per_s") * work / all_tokens


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
