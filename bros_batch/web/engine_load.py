"""What the engines of a model do and have to do, and therefore when a job is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Connection

from bros_batch.db import engines
from bros_batch.db.api_keys import weights_of
from bros_batch.db.forecast_inputs import RunningJob, running_jobs_of
from bros_batch.db.pending_items import urgency
from bros_batch.db.table_rows import EngineRow, Job
from bros_batch.db.waiting import ENGINE_SILENT_S
from bros_batch.forecast import NO_WORK, Forecast, OtherOwner, Work, forecast
from bros_batch.web.engine_pace import OUTPUT_WEIGHT, EnginePace, TokenCost
from bros_batch.web.expected_rows import ExpectedRows, InFlight

# Between the submission and the first row; and between the end of the last row and the end of the job.
BEGIN_S = 0.5
END_S = 0.2
COST_DOUBT = 0.35  # about what a token costs, if that is known from heartbeats only


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
    owner: str = ""


class EngineLoad:
    """What the engines of a model do and have to do."""

    def __init__(self, connection: Connection, engine: EnginePace, model: str, now_s: float) -> None:
        self._connection = connection
        self._engine = engine
        self._model = model
        self._now_s = now_s
        self._rows = ExpectedRows(connection, model)
        self._works: dict[str, Work] = {}

    def forecast(self, job: Job) -> Forecast | None:
        """When a running job is done; None if nothing is known of how fast the engines are."""
        mine = next((each for each in self._running if each.job.id == job.id), None)
        if mine is None or self.cost is None:
            return None
        begun = self._in_flight[job.id]
        row = self._rows.of(job, begun)
        left = job.total - job.ended
        has_more = left > begun.rows
        # The last row to end has not begun, or is in flight.
        last_tokens = row.output.mean if has_more else row.output.left(begun.output_tokens)
        return self._forecast(
            self._work_of(job),
            (job.owner, mine.order),
            last_tokens,
            END_S + (0 if begun.rows or job.ended else BEGIN_S / 2),
        )

    def forecast_of_new(self, new: NewJob) -> tuple[Forecast | None, float]:
        """When a job would be done if it were submitted now, and the output tokens of a row that this assumes."""
        row = self._rows.of_new(new.endpoint, new.defaults, new.prompt_tokens, new.max_output)
        tokens = row.output.mean
        if self.cost is None:
            return None, tokens
        order = (*urgency(new.priority, new.deadline_at), self._now_s, "")
        work = self._shared(row.work(self.cost, new.rows))
        return self._forecast(work, (new.owner, order), tokens, BEGIN_S + END_S), tokens

    def _forecast(
        self,
        work: Work,
        place: tuple[str, tuple[float, float, float, str]],
        last_tokens: float,
        overhead_s: float,
    ) -> Forecast:
        """When work is done that has this place: an owner, and the order among the jobs of that owner.

        Prepare divides the stream in the same way: by weight between owners, and by urgency between the jobs of one.
        """
        assert self.cost is not None
        owner, order = place
        ahead, of_owner = NO_WORK, dict[str, Work]()
        for each in self._running:
            if each.job.owner != owner:
                of_owner[each.job.owner] = of_owner.get(each.job.owner, NO_WORK) + self._work_of(each.job)
            elif each.order < order:
                ahead += self._work_of(each.job)
        weights = weights_of(self._connection, {owner, *of_owner}) if of_owner else {}
        return forecast(
            work,
            self.cost.doubt,
            ahead=ahead,
            others=[OtherOwner(each, weights[name] / weights[owner]) for name, each in of_owner.items()],
            row_s=self._row_s(last_tokens),
            overhead_s=overhead_s,
        )

    def _work_of(self, job: Job) -> Work:
        """What a running job has left."""
        assert self.cost is not None
        if job.id not in self._works:
            begun = self._in_flight[job.id]
            rows = max(job.total - job.ended - begun.rows, 0.0)
            self._works[job.id] = self._shared(self._rows.of(job, begun).work(self.cost, rows, begun))
        return self._works[job.id]

    def _shared(self, work: Work) -> Work:
        """Work that all engines do together."""
        num_engines = len(self._engines)
        return Work(work.seconds / num_engines, work.doubt_s / num_engines)

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

    def _row_s(self, output_tokens: float) -> float:
        """How long so many tokens of an output take, by the time that a token has lately taken."""
        tpots = [_number(_be(engine.stats), "tpot", "p50_s") for engine in self._engines]
        return output_tokens * min((each for each in tpots if each), default=0.0)

    @cached_property
    def _in_flight(self) -> dict[str, InFlight]:
        """The rows of each running job that engines have begun: the most urgent jobs have what there is."""
        free = running = self._engine.running * len(self._engines)
        tokens = self._engine.unfinished_tokens / self._engine.running if running else 0.0
        found = {}
        for each in self._running:
            rows = min(free, each.job.total - each.job.ended) if each.is_queued else 0.0
            found[each.job.id] = InFlight(rows, tokens if rows else 0.0)
            free -= rows
        return found

    @cached_property
    def _running(self) -> list[RunningJob]:
        return running_jobs_of(self._connection, self._model)

    @cached_property
    def _engines(self) -> list[EngineRow]:
        alive = engines.list_engines(self._connection, self._now_s - ENGINE_SILENT_S)
        return [each for each in alive if each.model == self._model and not each.stats.get("is_stuck")]


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


def _number(values: Any, *path: str) -> float:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    is_number = isinstance(values, int | float) and not isinstance(values, bool) and 0 <= values < 1e12
    return float(values) if is_number else 0.0
