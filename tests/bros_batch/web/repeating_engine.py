"""A simulated engine whose model repeats what the user wrote, and, after a tool's result, says what the result is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bros_batch.text.tokenizer import ModelTokenizer
from engine.__main__ import make_runner
from engine.config import EngineConfig
from engine.core.terms import SamplingParams
from engine.runner.simulated import SimulatedRunner
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import running_engine

END = 2
LAST_MESSAGE = re.compile(r".*<\|im_start\|>(user|tool)\n(.*?)<\|im_end\|>", re.DOTALL)


class RepeatingRunner(SimulatedRunner):
    """The simulated runner with other tokens: those of the last message of the prompt."""

    def __init__(self, runner: SimulatedRunner, tokenizer: ModelTokenizer) -> None:
        super().__init__(runner.info)
        self._tokenizer = tokenizer
        self._token_in_slot: dict[int, int] = {}
        self._row = 0

    def _compute(self, row: int, start: int, token_ids: list[int], slots: list[int]) -> int:
        self._row = row
        self._token_in_slot.update(zip(slots, token_ids, strict=True))
        return super()._compute(row, start, token_ids, slots)

    def _copy(self, known_slots: Sequence[int], device_slots: Sequence[int]) -> None:
        super()._copy(known_slots, device_slots)
        known = [self._token_in_slot[slot] for slot in known_slots]
        self._token_in_slot.update(zip(device_slots, known, strict=False))

    def _draw(self, entry: int, num_output: int, sampling: SamplingParams) -> tuple[int, bool]:
        start = self._row_start[self._row]
        assert start is not None
        slots = self._row_slots[self._row][: start.num_prompt_tokens]
        prompt = self._tokenizer.decode_all([self._token_in_slot[slot] for slot in slots])
        found = LAST_MESSAGE.match(prompt)
        assert found is not None, prompt
        text = found[2] if found[1] == "user" else f"It is {found[2]}."
        output = [*self._tokenizer.encode_prompt(text, add_special_tokens=False), END]
        return output[num_output - 1], num_output == len(output)


@contextmanager
def repeating_web(directory: Path, model: Path) -> Iterator[Web]:
    """Serve `model` with an engine that repeats what the user wrote."""
    config = EngineConfig(
        listen="unused",
        runner="simulated",
        model=str(model),
        served_model_name=MODEL_NAME,
        max_model_len=2048,
    )
    runner = make_runner(config)
    assert isinstance(runner, SimulatedRunner)
    repeating = RepeatingRunner(runner, ModelTokenizer(model))
    with (
        running_engine(
            directory, repeating, model=str(model), served_model_name=MODEL_NAME, max_model_len=2048
        ) as engine,
        serving(web_settings(directory / "web", model, engine_url=engine.url)) as web,
    ):
        yield web
