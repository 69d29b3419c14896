"""Streams whose first token takes long: the client gets the headers and comments meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.__main__ import make_runner
from engine.config import EngineConfig
from engine.core.plan import StepPlan
from engine.runner.simulated import SimulatedRunner, SimulatedStep
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import running_engine
from tests.services import PATIENCE_S

CHAT: dict[str, Any] = {
    "model": MODEL_NAME,
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
}


class ClosedRunner(SimulatedRunner):
    """A runner that computes no step until it is opened."""

    def __init__(self, runner: SimulatedRunner) -> None:
        super().__init__(runner.info)
        self.opened = threading.Event()

    def launch(self, plan: StepPlan) -> SimulatedStep:
        self.opened.wait()
        return super().launch(plan)


@dataclass(frozen=True)
class Waiting:
    """A server whose engine computes nothing until `runner` is opened."""

    web: Web
    runner: ClosedRunner


@pytest.fixture
def waiting(tmp_path: Path, text_model: Path) -> Iterator[Waiting]:
    names: dict[str, Any] = {"model": str(text_model), "served_model_name": MODEL_NAME}
    runner = make_runner(EngineConfig(listen="unused", runner="simulated", **names))
    assert isinstance(runner, SimulatedRunner)
    closed = ClosedRunner(runner)
    settings = web_settings(
        tmp_path, text_model, engine_url=f"unix://{tmp_path / 'engine.sock'}", stream_comment_s=0.05
    )
    with running_engine(tmp_path, closed, **names), serving(settings) as web:
        try:
            yield Waiting(web, closed)
        finally:
            closed.opened.set()


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
def test_a_stream_that_waits_has_headers_and_comments_and_then_the_whole_answer(
    waiting: Waiting, endpoint: str
) -> None:
    body = (
        CHAT if endpoint == "chat/completions" else {"model": MODEL_NAME, "prompt": "Hello", "stream": True}
    )
    with httpx.stream(
        "POST", f"{waiting.web.url}/v1/{endpoint}", json={**body, "max_tokens": 4}, timeout=PATIENCE_S
    ) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        seen: list[str] = []
        while seen.count(": waiting") < 3:
            seen.append(next(lines))
        assert set(seen) == {": waiting", ""}
        waiting.runner.opened.set()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    reasons = [json.loads(each)["choices"][0]["finish_reason"] for each in data[:-1]]
    assert reasons[-1] == "length"


def test_the_openai_client_reads_such_a_stream(waiting: Waiting) -> None:
    with waiting.web.openai() as client:
        stream = client.chat.completions.create(**CHAT, max_tokens=4)  # returns with the headers
        waiting.runner.opened.set()
        chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_request_that_cannot_be_served_still_has_its_own_status(waiting: Waiting) -> None:
    for fields, status in (({"model": "other"}, 404), ({"max_tokens": 10**6}, 400)):
        answer = httpx.post(f"{waiting.web.url}/v1/chat/completions", json={**CHAT, **fields})
        assert answer.status_code == status
