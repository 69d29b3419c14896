"""What a row of a job costs in tokens: by its rows that have ended, by earlier jobs like it, or by a guess."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from bros_batch.db.forecast_inputs import earlier_jobs, output_lengths
from bros_batch.db.table_rows import Job
from bros_batch.forecast import Work
from bros_batch.openai_api.endpoints import DECISIONS, EMBEDDINGS, SYSTEMONE
from bros_batch.output_lengths import Lengths, OutputLengths
from bros_batch.web.engine_pace import TokenCost

# Their answers are read from prompts.
WITHOUT_OUTPUT = (DECISIONS, SYSTEMONE, EMBEDDINGS)
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
CHARS_PER_TOKEN = 3.5
TOKENS_PER_FIELD = 12
OUTPUT_TOKENS = 128
# An earlier job with the same defaults tells as much about a new one as so many of its own rows.
ROWS_OF_EARLIER = 20.0
# Doubts, as standard deviations of logarithms: about a guess of tokens, and about prompts as long as those of an
# earlier job were for their size.
GUESS_DOUBT = 0.7
SIZE_DOUBT = 0.1


@dataclass(frozen=True, slots=True)
class InFlight:
    """The rows of a job that engines have begun, and the output tokens that each of them has on average."""

    rows: float = 0.0
    output_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class ExpectedRow:
    """A row of a job: the tokens of its prompt that must be computed, the doubt about them, and its output."""

    prompt: float
    prompt_doubt: float
    output: OutputLengths

    def work(self, cost: TokenCost, rows: float, begun: InFlight | None = None) -> Work:
        """The work of so many rows, and of those in flight. These have their prompts behind them, or half of them if
        they have no output yet."""
        begun = begun or InFlight()
        prompts = rows + (begun.rows / 2 if begun.output_tokens < 1 else 0.0)
        outputs = rows * self.output.mean + begun.rows * self.output.left(begun.output_tokens)
        prompt_s, output_s = cost.seconds(prompts * self.prompt, 0.0), cost.seconds(0.0, outputs)
        output_doubt = GUESS_DOUBT / math.sqrt(1 + self.output.evidence)
        return Work(prompt_s + output_s, math.hypot(prompt_s * self.prompt_doubt, output_s * output_doubt))


class ExpectedRows:
    """The rows of the jobs of a model. What is read from the database is read once."""

    def __init__(self, connection: Connection, model: str) -> None:
        self._connection = connection
        self._model = model
        self._earlier: dict[str, list[Job]] = {}
        self._lengths: dict[str, list[int]] = {}

    def of_new(
        self, endpoint: str, defaults: Mapping[str, Any], prompt_tokens: float, limit: float
    ) -> ExpectedRow:
        """A row of a job that has not been submitted. Its prompts are known."""
        return ExpectedRow(prompt_tokens, 0.0, self._output(endpoint, defaults, limit))

    def of(self, job: Job, begun: InFlight) -> ExpectedRow:
        """A row of a running job."""
        limit = _limit(job)
        computed = job.ended - job.reused
        if computed <= 0 or not job.prompt_tokens:
            prompt, doubt = self._prompt_by_size(job)
            output = self._output(job.endpoint, job.defaults, limit, begun=begun)
            return ExpectedRow(prompt, doubt, output)
        seen = self._sample(job)
        ended = Lengths(seen, computed / len(seen)) if seen else None
        prompt = max(job.prompt_tokens - job.cached_tokens, 0) / computed
        output = self._output(job.endpoint, job.defaults, limit, ended=ended, begun=begun)
        return ExpectedRow(prompt, SIZE_DOUBT / math.sqrt(computed / 10), output)

    def _output(
        self,
        endpoint: str,
        defaults: Mapping[str, Any],
        limit: float,
        *,
        ended: Lengths | None = None,
        begun: InFlight | None = None,
    ) -> OutputLengths:
        if limit <= 0:
            return OutputLengths(0.0, 0.0)
        begun = begun or InFlight()
        return OutputLengths(
            # Few answers are as long as they may be, unless that is short.
            min(_schema_tokens(defaults.get("response_format")) or min(OUTPUT_TOKENS, limit / 2), limit),
            limit,
            ended=ended,
            expected=self._expected(endpoint, defaults),
            in_flight=begun.rows,
            so_far=begun.output_tokens,
        )

    def _expected(self, endpoint: str, defaults: Mapping[str, Any]) -> Lengths | None:
        """What the latest job with the same defaults had, even if its rows are gone."""
        for job in self._same(endpoint, defaults):
            computed = job.succeeded - job.reused
            if computed > 0:
                seen = self._sample(job) or [round(job.output_tokens / computed)]
                return Lengths(seen, ROWS_OF_EARLIER / len(seen))
        return None

    def _prompt_by_size(self, job: Job) -> tuple[float, float]:
        """The tokens of a prompt, by the size of the rows: as in earlier jobs with the same defaults, or by a guess."""
        size = job.ingest_offset / max(job.ingest_line, 1)
        same = [each for each in self._same(job.endpoint, job.defaults) if not each.reused]
        tokens = sum(max(each.prompt_tokens - each.cached_tokens, 0) for each in same)
        read = sum(each.ingest_offset for each in same)
        if tokens and read:
            return size * tokens / read, SIZE_DOUBT
        template = len(str(job.defaults.get("prompt") or ""))
        return max((size + template) / CHARS_PER_TOKEN, 1.0), GUESS_DOUBT / 2

    def _same(self, endpoint: str, defaults: Mapping[str, Any]) -> list[Job]:
        """Earlier jobs with these defaults, the latest first. Jobs without defaults have nothing in common."""
        if not defaults:
            return []
        if endpoint not in self._earlier:
            self._earlier[endpoint] = earlier_jobs(self._connection, self._model, endpoint)
        return [job for job in self._earlier[endpoint] if job.defaults == defaults]

    def _sample(self, job: Job) -> list[int]:
        if job.id not in self._lengths:
            self._lengths[job.id] = output_lengths(self._connection, job.id)
        return self._lengths[job.id]


def _limit(job: Job) -> float:
    """The tokens that an output of a job may have; infinite if its lines say so each."""
    if job.endpoint in WITHOUT_OUTPUT:
        return 0.0
    given = (job.defaults.get(name) for name in LIMITS)
    return next((float(each) for each in given if isinstance(each, int)), math.inf)


def _schema_tokens(response_format: Any) -> float | None:
    """About how many tokens an answer of a schema has: its names, and a few tokens for each value."""
    if not isinstance(response_format, Mapping) or response_format.get("type") != "json_schema":
        return None
    schema = (response_format.get("json_schema") or {}).get("schema") or {}
    names = list((schema.get("properties") or {}) if isinstance(schema, Mapping) else {})
    if not names:
        return None
    return len(json.dumps(names)) / CHARS_PER_TOKEN + TOKENS_PER_FIELD * len(names)
