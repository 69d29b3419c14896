"""What a step drew, on its way from the device, and the `StepResult` that it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.plan import StepResult
from engine.core.terms import TokenLogprobs
from engine.runner.row_failure import row_failure
from engine.runner.sampling.sampler import PendingDraw
from engine.runner.sampling.stop import StepRules
from engine.runner.step_inputs import Int64Array


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """The draw of a step, or of one part of a step that is computed in parts."""

    index: Int64Array  # [n] rows of the plan
    num_outputs: Int64Array  # [n] output tokens that each has, with this one
    draw: PendingDraw
    rules: StepRules


@dataclass(slots=True)
class TorchStep:
    """A step under way: the `PendingStep` of `TorchRunner`."""

    num_rows: int
    failed: dict[int, str]  # by row of the plan: why its request failed
    lost_kv: bool = False  # see `StepResult`
    draws: list[DrawnRows] = field(default_factory=list)
    _result: StepResult | None = None

    def result(self) -> StepResult:
        """Waits for the device the first time; later calls return the same result.

        An error while a token is looked at fails its row. One while tokens are received fails the rows they are for.
        """
        if self._result is None:
            sampled, stopped = [-1] * self.num_rows, [False] * self.num_rows
            logprobs: dict[int, TokenLogprobs] = {}
            for drawn in self.draws:
                index = drawn.index.tolist()
                try:
                    token_ids, found = drawn.draw.collect()
                except BaseException as error:
                    failure = row_failure(error)
                    drawn.draw.token_ids.cpu()  # raises an error if it is the device that has failed
                    self.failed.update(dict.fromkeys(index, failure))
                    continue
                ends, failed = drawn.rules.ends(token_ids, drawn.num_outputs)
                for i, token_id, end in zip(index, token_ids, ends, strict=True):
                    sampled[i], stopped[i] = token_id, end
                logprobs.update({index[j]: value for j, value in found.items()})
                self.failed.update({index[j]: failure for j, failure in failed.items()})
            for i in self.failed:
                sampled[i], stopped[i] = -1, False
                logprobs.pop(i, None)
            self._result = StepResult(sampled, stopped, logprobs, self.failed, self.lost_kv)
        return self._result
