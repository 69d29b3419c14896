"""What a step drew, on its way from the device, and the `StepResult` that it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.plan import StepResult
from engine.core.reading import RowReading
from engine.core.terms import TokenLogprobs
from engine.runner.prompt_reader import PendingReadings
from engine.runner.row_failure import row_failure
from engine.runner.sampling.grammars import StepGrammars, Taken
from engine.runner.sampling.sampler import PendingDraw
from engine.runner.sampling.stop import StepRules
from engine.runner.step_arrays import Int64Array


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """The draw of a step, or of one part of a step that is computed in parts."""

    index: Int64Array  # [n] rows of the plan
    num_outputs: Int64Array  # [n] output tokens that each has, with this one
    draw: PendingDraw
    rules: StepRules
    grammars: StepGrammars | None


@dataclass(slots=True)
class TorchStep:
    """A step under way: the `PendingStep` of `TorchRunner`."""

    num_rows: int
    failed: dict[int, str]  # by row of the plan: why its request failed
    lost_kv: bool = False  # see `StepResult`
    prepared_s: float = 0.0
    is_replayed: bool = False
    num_graph_failures: int = 0
    draws: list[DrawnRows] = field(default_factory=list)
    readings: list[PendingReadings] = field(default_factory=list)
    _result: StepResult | None = None

    def result(self) -> StepResult:
        """Waits for the device the first time; later calls return the same result.

        An error while a token is looked at fails its row. One while tokens are received fails the rows they are for.
        """
        if self._result is None:
            sampled, stopped = [-1] * self.num_rows, [False] * self.num_rows
            logprobs: dict[int, TokenLogprobs] = {}
            forced: dict[int, list[int]] = {}
            for drawn in self.draws:
                index = drawn.index.tolist()
                try:
                    token_ids, found = drawn.draw.collect()
                except BaseException as error:
                    failure = row_failure(error)
                    drawn.draw.token_ids.cpu()  # raises an error if it is the device that has failed
                    self.failed.update(dict.fromkeys(index, failure))
                    continue
                known = drawn.grammars.known() if drawn.grammars is not None else ()
                ends, failed = drawn.rules.ends(token_ids, drawn.num_outputs, known)
                if drawn.grammars is not None:
                    taken = drawn.grammars.take(token_ids, known, ends)
                    failed |= taken.failed
                    failed |= self._add_forced(drawn, taken, ends, forced)
                for i, token_id, end in zip(index, token_ids, ends, strict=True):
                    sampled[i], stopped[i] = token_id, end
                logprobs.update({index[j]: value for j, value in found.items()})
                self.failed.update({index[j]: failure for j, failure in failed.items()})
            readings = self._collect_readings()
            for i in self.failed:
                sampled[i], stopped[i] = -1, False
                logprobs.pop(i, None)
                forced.pop(i, None)
                readings.pop(i, None)
            self._result = StepResult(
                sampled,
                stopped,
                logprobs,
                self.failed,
                self.lost_kv,
                forced,
                readings,
                self.num_graph_failures,
            )
        return self._result

    @property
    def is_taken(self) -> bool:
        """Whether the result is known on the host."""
        return self._result is not None

    @staticmethod
    def _add_forced(
        drawn: DrawnRows, taken: Taken, ends: list[bool], forced: dict[int, list[int]]
    ) -> dict[int, str]:
        """Adds the tokens that grammars force to `forced`, and notes in `ends` which of them end their request.
        Returns the rows for which this cannot be said."""
        failed: dict[int, str] = {}
        for j in taken.ended:
            ends[j] = True
        for j, token_ids in taken.forced.items():
            try:
                last = drawn.rules.end_among(j, token_ids, int(drawn.num_outputs[j]))
            except BaseException as error:
                failed[j] = row_failure(error)
                continue
            if last is not None:
                ends[j] = True
            forced[int(drawn.index[j])] = token_ids if last is None else token_ids[: last + 1]
        return failed

    def _collect_readings(self) -> dict[int, RowReading]:
        """What was read, by row of the plan. A step that is computed in parts reads the positions of a row in order."""
        found: dict[int, RowReading] = {}
        for pending in self.readings:
            try:
                part = pending.collect()
            except BaseException as error:
                self.failed.update(dict.fromkeys(pending.index, row_failure(error)))
                continue
            for i, reading in part.items():
                found.setdefault(i, RowReading()).add(reading)
        return found
