"""Guarantee: every submitted line ends in exactly one visible result, even if any process dies at any moment.

A job of 2,000 lines runs through all services on the simulated engine while they are killed with SIGKILL at random
moments. The simulated engine's answers depend only on their prompts, so the test detects a result of the wrong line and
a result that was cut short.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from bros_batch.text.tokenizer import load_tokenizer
from engine.core.terms import SamplingParams
from engine.runner.simulated import SimulatedRunner
from tests.factories import runner_info
from tests.services import wait_for
from tests.up_process import Up, running_up

NUM_LINES = 2000
MAX_TOKENS = 24
VICTIMS = ("worker", "engine", "redis", "web", "beat")
ROUNDS = 3  # how often each victim is killed
ENGINE = (
    "--runner",
    "simulated",
    "--simulated-step-s",
    "0.01",
    "--max-num-seqs",
    "16",
    "--claim-timeout-s",
    "3",
)
ENGINE += ("--max-attempts", "50")
IMPATIENT = {
    "BROS_LOST_AFTER_S": "3",
    "BROS_CLAIM_TIMEOUT_S": "3",
    "BROS_LEASE_S": "3",
    "BROS_VISIBILITY_TIMEOUT_S": "3",
    "BROS_PUMP_INTERVAL_S": "0.3",
    "BROS_SWEEP_INTERVAL_S": "1",
    "BROS_QUEUE_MAX_ITEMS": "400",
    "BROS_INGEST_GROUP_LINES": "200",
    "BROS_MAX_ATTEMPTS": "50",
}


def write_documents(path: Path) -> dict[str, str]:
    """Write a batch file and return the user message of each custom id."""
    messages = {f"doc-{i}": f"Document number {i}: " + "total 12.50 " * (i % 7) for i in range(NUM_LINES)}
    with path.open("w") as file:
        for custom_id, content in messages.items():
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": content}],
                "max_tokens": MAX_TOKENS,
            }
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return messages


def expected_texts(messages: dict[str, str], model: Path) -> dict[str, str]:
    """Return the answer of the simulated engine to each message."""
    text = load_tokenizer(str(model))
    runner = SimulatedRunner(
        replace(runner_info(), vocab_size=json.loads((model / "config.json").read_text())["vocab_size"])
    )
    sampling = SamplingParams(max_tokens=MAX_TOKENS)
    return {
        custom_id: text.decode(
            runner.continuation(text.encode_chat([{"role": "user", "content": content}]), sampling)
        )
        for custom_id, content in messages.items()
    }


class Api:
    """A client of the HTTP API that retries while a killed web process restarts."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=30)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()

    def get(self, path: str) -> httpx.Response:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                response = self._client.get(path)
                if response.status_code < 500:
                    return response.raise_for_status()
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline_s, f"{path} did not answer in time"
            time.sleep(0.05)

    def submit(self, path: Path) -> str:
        with path.open("rb") as file:
            answer = self._client.post("/v1/files", files={"file": file}, data={"purpose": "batch"})
        file_id = answer.raise_for_status().json()["id"]
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return self._client.post("/v1/batches", json=body).raise_for_status().json()["id"]


def kill_at_random(up: Up, api: Api, batch_id: str, rng: random.Random) -> int:
    """Kill each victim ROUNDS times while the job progresses. Returns the number of kills."""
    victims = list(VICTIMS) * ROUNDS
    rng.shuffle(victims)
    thresholds = sorted(rng.uniform(0, 0.9) * NUM_LINES for _ in victims)
    kills = 0
    for victim, threshold in zip(victims, thresholds, strict=True):

        def has_reached(done: float = threshold) -> bool:
            batch = api.get(f"/v1/batches/{batch_id}").json()
            counts = batch["request_counts"]
            return batch["status"] == "completed" or counts["completed"] + counts["failed"] >= done

        wait_for(has_reached, timeout_s=120)

        def is_alive(name: str = victim) -> int | None:
            return up.state()["children"].get(name)

        os.kill(wait_for(is_alive), signal.SIGKILL)
        kills += 1
    return kills


@pytest.mark.slow
def test_every_line_has_exactly_one_result_after_any_crash(tmp_path, database_url):
    messages = write_documents(tmp_path / "in.jsonl")
    with (
        running_up(tmp_path / "data", engine=ENGINE, BROS_DATABASE_URL=database_url, **IMPATIENT) as up,
        Api(up.state()["url"]) as api,
    ):
        batch_id = api.submit(tmp_path / "in.jsonl")
        assert kill_at_random(up, api, batch_id, random.Random(7)) == len(VICTIMS) * ROUNDS

        def is_over() -> dict | None:
            batch = api.get(f"/v1/batches/{batch_id}").json()
            return batch if batch["status"] in ("completed", "failed", "expired") else None

        batch = wait_for(is_over, timeout_s=240)
        assert batch["status"] == "completed", batch
        assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
        output = api.get(f"/v1/files/{batch['output_file_id']}/content").text
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["custom_id"] for line in lines] == list(messages), "each once, in input order"
    expected = expected_texts(messages, tmp_path / "data-model")
    for line in lines:
        content = line["response"]["body"]["choices"][0]["message"]["content"]
        assert content == expected[line["custom_id"]]
