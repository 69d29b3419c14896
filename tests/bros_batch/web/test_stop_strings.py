"""Stop strings: the engine and the web process end an output at the same token, and the usage is complete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI

from engine.__main__ import make_runner
from engine.config import EngineConfig
from engine.core.plan import StepPlan
from engine.runner.sampling.stop import StopTable
from engine.runner.simulated import SimulatedRunner, SimulatedStep
from tests.bros_batch.web.serving import MODEL_NAME, serving, web_settings
from tests.engines import running_engine

QUESTION: Any = [{"role": "user", "content": "How long is a piece of string, and who has measured it? " * 4}]


class StoppingRunner(SimulatedRunner):
    """The simulated runner with the stop rules of the torch runner."""

    def __init__(self, runner: SimulatedRunner, model: Path) -> None:
        super().__init__(runner.info)
        self._table = StopTable(runner.info.max_num_seqs, frozenset(), str(model))

    def launch(self, plan: StepPlan) -> SimulatedStep:
        step = super().launch(plan)
        for start in plan.row_starts:
            self._table.start(start)
        result = step.result()
        for i, row in enumerate(plan.rows):
            start = self._row_start[row]
            if plan.samples[i] and start is not None:
                number = plan.starts[i] + plan.counts[i] - start.num_prompt_tokens + 1
                rules = self._table.rules_of(np.array([row]))
                ended, _ = rules.ends([result.sampled[i]], np.array([number]))
                result.stopped[i] |= ended[0]
        return step


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, text_model: Path) -> Iterator[OpenAI]:
    directory = tmp_path_factory.mktemp("stopping")
    names = {"model": str(text_model), "served_model_name": MODEL_NAME}
    config = EngineConfig(listen="unused", runner="simulated", **names)  # type: ignore[arg-type]
    runner = make_runner(config)
    assert isinstance(runner, SimulatedRunner)
    with (
        running_engine(directory, StoppingRunner(runner, text_model), **names) as engine,
        serving(web_settings(directory / "web", text_model, engine_url=engine.url)) as web,
        web.openai() as client,
    ):
        yield client


def answer(client: OpenAI, **fields: Any) -> Any:
    extra = {"ignore_eos": True, **fields.pop("extra_body", {})}
    return client.chat.completions.create(
        model=MODEL_NAME, messages=QUESTION, max_tokens=60, extra_body=extra, **fields
    )


@pytest.mark.parametrize("lane", ["default", "flex"])
def test_a_stop_string_does_not_hide_the_cached_tokens(client: OpenAI, lane: Any) -> None:
    text = answer(client, service_tier=lane).choices[0].message.content
    again = answer(client, service_tier=lane)
    stop = text[20:24]
    stopped = answer(client, service_tier=lane, stop=stop)
    streamed = list(
        answer(
            client,
            service_tier=lane,
            stop=[stop, "absent"],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    for usage in (stopped.usage, streamed[-1].usage):
        assert usage.prompt_tokens == again.usage.prompt_tokens
        assert usage.completion_tokens == stopped.usage.completion_tokens < 60
        assert (
            usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens_details.cached_tokens > 0
        )
