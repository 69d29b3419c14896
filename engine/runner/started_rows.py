"""The requests that were started in rows of the slot table, and why some of them cannot be computed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.core.plan import RowStart
from engine.runner.base import RunnerInfo
from engine.runner.prompt_reader import PromptReader
from engine.runner.row_failure import row_failure
from engine.runner.sampling.grammars import GrammarTable
from engine.runner.sampling.stop import StopTable
from engine.runner.sampling.table import SamplingTable
from engine.runner.step_arrays import Int64Array, StepArrays


class StartedRows:
    """Starts rows in all tables that keep something of their requests. An error there fails one request only."""

    def __init__(
        self,
        info: RunnerInfo,
        sampling: SamplingTable,
        stop: StopTable,
        reader: PromptReader,
        grammars: GrammarTable | None,
    ) -> None:
        """`grammars` is None if another rank draws, whose tokens all get."""
        self._info = info
        self._sampling = sampling
        self._stop = stop
        self._reader = reader
        self._grammars = grammars
        self._num_prompt_tokens = np.zeros(info.max_num_seqs, dtype=np.int64)
        self._errors: dict[int, str] = {}  # by row: why its request cannot be computed

    def start(self, start: RowStart) -> None:
        """Assigns row `start.row` to this request."""
        row = start.row
        self._num_prompt_tokens[row] = start.num_prompt_tokens
        self._errors.pop(row, None)
        if self._grammars is not None:
            self._grammars.start(start)
        error = _unknown_token(start, self._info.vocab_size)
        if error is None:
            try:
                self._sampling.start(start)
                self._stop.start(start)
                self._reader.start(start)
                if start.sampling.asks_about_prompt and not self._info.hidden_size:
                    error = "this model's hidden states cannot be read, so it has no scores, prompt_logprobs or pooling"
            except ValueError as invalid:
                error = str(invalid)
            except BaseException as raised:
                error = row_failure(raised)
        if error is not None:
            self._errors[row] = error

    def fail(self, row: int, reason: str) -> None:
        """From now on, the row's request fails in each step."""
        self._errors[row] = reason

    def failed_in(self, step: StepArrays) -> dict[int, str]:
        """Returns the rows of the plan whose requests fail, by index, with the reason.

        Replaces token ids that the model cannot look up, in place. All other tokens of these rows are computed as
        usual, since their K and V may be shared as a prefix.
        """
        if not self._errors:
            return {}
        step.token_ids[(step.token_ids < -1) | (step.token_ids >= self._info.vocab_size)] = 0
        return {i: self._errors[row] for i, row in enumerate(step.rows.tolist()) if row in self._errors}

    def num_outputs(self, step: StepArrays, chosen: npt.NDArray[np.intp]) -> Int64Array:
        """The number of output tokens before this step of the rows `chosen` (indices into R)."""
        return step.ends[chosen] - self._num_prompt_tokens[step.rows[chosen]]


def _unknown_token(start: RowStart, vocab_size: int) -> str | None:
    """The error of a request that names a token outside of the vocabulary, or None."""
    least, most = min(start.token_ids), max(start.token_ids)
    if least < 0 or most >= vocab_size:
        unknown = least if least < 0 else most
        return f"token id {unknown} is outside of the model's vocabulary of {vocab_size}"
    for token_id, _ in start.sampling.logit_bias:
        if not 0 <= token_id < vocab_size:
            return f"logit_bias names token id {token_id}, outside of the model's vocabulary of {vocab_size}"
    for token_id in start.sampling.stop_token_ids:
        if not 0 <= token_id < vocab_size:
            return f"stop_token_ids names {token_id}, outside of the model's vocabulary of {vocab_size}"
    return None
