"""Guarantee: a response in the background completes exactly once, even if any process dies at any moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from bros_batch.text.tokenizer import load_tokenizer
from engine.core.terms import SamplingParams
from engine.runner.simulated import SimulatedRunner
from tests.e2e.known_jobs import IMPATIENT, Api, look, simulated_engine
from tests.factories import runner_info
from tests.services import wait_for
from tests.up_process import running_up

NUM_RESPONSES = 60
MAX_TOKENS = 24
VICTIMS = ("engine", "worker", "redis", "web", "beat", "engine")


def expected_texts(model: Path, questions: list[str]) -> list[str]:
    text = load_tokenizer(str(model))
    runner = SimulatedRunner(replace(runner_info(), vocab_size=text.vocab_size))
    sampling = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True)
    return [
        text.decode(runner.continuation(text.encode_chat([{"role": "user", "content": question}]), sampling))
        for question in questions
    ]


def created(url: str, questions: list[str]) -> Iterator[str]:
    """Start a response for each question; every third one runs as a chat."""
    with httpx.Client(base_url=url, trust_env=False, verify=False, timeout=30) as http:
        for number, question in enumerate(questions):
            body: dict[str, Any] = {"model": "tiny", "input": question, "background": True}
            body |= {"max_output_tokens": MAX_TOKENS, "ignore_eos": True}
            body["service_tier"] = "flex" if number % 3 else "priority"
            yield http.post("/v1/responses", json=body).raise_for_status().json()["id"]


@pytest.mark.slow
def test_each_response_completes_once_after_any_crash(tmp_path: Path, database_url: str) -> None:
    questions = [f"Question {number}: " + "total 12.50 " * (number % 7) for number in range(NUM_RESPONSES)]
    engine = simulated_engine(step_s=0.02, rows=4)
    settings = {**IMPATIENT, "BROS_MAX_ATTEMPTS": "50"}
    with (
        running_up(tmp_path / "data", engine=engine, BROS_DATABASE_URL=database_url, **settings) as up,
        closing(created(up.state()["url"], questions)) as ids_of,
        Api(up.state()["url"]) as api,
    ):
        ids = list(ids_of)

        def ended() -> list[dict[str, Any]]:
            found = [api.get(f"/v1/responses/{each}").json() for each in ids]
            return [each for each in found if each["status"] not in ("queued", "in_progress")]

        def num_jobs_ended() -> int:
            query = "SELECT count(*) FROM jobs WHERE status = 'completed'"
            return int(look(database_url, lambda connection: connection.exec_driver_sql(query).scalar_one()))

        for number, victim in enumerate(VICTIMS):
            threshold = NUM_RESPONSES * number // (len(VICTIMS) + 2)
            wait_for(lambda at_least=threshold: num_jobs_ended() >= at_least, "progress", timeout_s=120)  # type: ignore[misc]
            up.kill(victim)
        wait_for(lambda: num_jobs_ended() == NUM_RESPONSES, "the end of all responses", timeout_s=240)
        results = wait_for(lambda: (seen := ended()) and len(seen) == NUM_RESPONSES and seen, "the answers")
        assert {each["status"] for each in results} == {"incomplete"}, "each ended at its limit of tokens"
        texts = [each["output"][0]["content"][0]["text"] for each in results]
        assert texts == expected_texts(tmp_path / "data-model", questions)
        again = ended()
        assert again == results, "a result never changes"

        query = "SELECT status, succeeded, total FROM jobs"
        rows = look(database_url, lambda connection: connection.exec_driver_sql(query).all())
        assert [tuple(row) for row in rows] == [("completed", 1, 1)] * NUM_RESPONSES
        assert api.get("/v1/batches").json()["data"] == []
