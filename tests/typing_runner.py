"""A runner that writes a given text, whatever the prompt is."""

from __future__ import annotations

from bros_batch.text.tokenizer import ModelTokenizer
from engine.core.terms import SamplingParams
from engine.runner.base import RunnerInfo
from engine.runner.simulated import SimulatedRunner


class TypingRunner(SimulatedRunner):
    """The simulated runner, with the tokens of `text` as the output of every request, and the end token after them."""

    def __init__(self, info: RunnerInfo, tokenizer: ModelTokenizer) -> None:
        super().__init__(info)
        self._tokenizer = tokenizer
        self._output: list[int] = []

    def write(self, text: str) -> None:
        """Let the requests from now on have this output."""
        self._output = [*self._tokenizer.encode_prompt(text), min(self._tokenizer.eos_token_ids)]

    def _draw(self, entry: int, num_output: int, sampling: SamplingParams) -> tuple[int, bool]:
        return self._output[num_output - 1], num_output == len(self._output)
