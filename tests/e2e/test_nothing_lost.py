"""Promise: every submitted line ends in exactly one visible result, whatever process dies, whenever.

Two thousand documents go through the whole product on the simulated engine while its processes are killed with
SIGKILL at random moments. The simulated engine's answers are functions of their prompts, so that a result of the
wrong document, or one cut short, shows.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from bros_batch.prompts import load
from bros_batch.settings import DEMO_MODEL_DIR
from engine.core.types import SamplingParams
from engine.runner.simulated import SimulatedRunner
from tests.factories import runner_info
from tests.services import database_urls, wait_for

NUM_LINES = 2000
MAX_TOKENS = 24
VICTIMS = ("worker", "engine", "redis", "web", "beat")
ROUNDS = 3  # how often each of them is killed
IMPATIENT = {
    "BROS_LOST_AFTER_S": "3",
    "BROS_CLAIM_TIMEOUT_S": "3",
    "BROS_LEASE_S": "3",
    "BROS_VISIBILITY_TIMEOUT_S": "3",
    "BROS_PUMP_INTERVAL_S": "0.3",
    "BROS_SWEEP_INTERVAL_S": "1",
    "BROS_QUEUE_HIGH_WATER": "400",
    "BROS_QUEUE_LOW_WATER": "200",
    "BROS_INGEST_CHUNK_LINES": "200",
    "BROS_MAX_ATTEMPTS": "50",
}


@contextmanager
def running_up(data_dir: Path, **env: str) -> Iterator[dict]:
    """`bros-batch up` on a free port, with the simulated engine; what it printed when it was ready."""
    command = [sys.executable, "-m", "cli", "up", "--json", "--data-dir", str(data_dir), "--port", "0"]
    command += ["--workers", "2", "--", "--runner", "simulated", "--simulated-step-s", "0.01"]
    command += ["--max-num-seqs", "16", "--claim-timeout-s", "3", "--max-deliveries", "50"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **IMPATIENT, **env})
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.communicate(timeout=90)


def write_documents(path: Path) -> dict[str, str]:
    """A batch file; the user message of each custom id."""
    messages = {f"doc-{i}": f"Document number {i}: " + "total 12.50 " * (i % 7) for i in range(NUM_LINES)}
    with path.open("w") as file:
        for custom_id, content in messages.items():
            body = {
                "model": "bros-demo",
                "messages": [{"role": "user", "content": content}],
                "max_tokens": MAX_TOKENS,
            }
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return messages


def expected_texts(messages: dict[str, str]) -> dict[str, str]:
    text = load(str(DEMO_MODEL_DIR))
    vocab_size = json.loads((DEMO_MODEL_DIR / "config.json").read_text())["vocab_size"]
    info = runner_info()
    runner = SimulatedRunner(type(info)(**{**_fields(info), "vocab_size": vocab_size}))
    sampling = SamplingParams(max_tokens=MAX_TOKENS)
    return {
        custom_id: text.decode(
            runner.continuation(text.encode_chat([{"role": "user", "content": content}]), sampling)
        )
        for custom_id, content in messages.items()
    }


def _fields(info: object) -> dict:
    return {name: getattr(info, name) for name in info.__dataclass_fields__}  # type: ignore[attr-defined]


class Api:
    """The HTTP API, asked again while a killed web process comes back."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=30)

    def get(self, path: str) -> httpx.Response:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                response = self._client.get(path)
                if response.status_code < 500:
                    return response.raise_for_status()
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline_s, f"{path} can't be had"
            time.sleep(0.05)

    def submit(self, path: Path) -> str:
        with path.open("rb") as file:
            answer = self._client.post("/v1/files", files={"file": file}, data={"purpose": "batch"})
        file_id = answer.raise_for_status().json()["id"]
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return self._client.post("/v1/batches", json=body).raise_for_status().json()["id"]


def kill_at_random(data_dir: Path, api: Api, batch_id: str, rng: random.Random) -> int:
    """Kill each victim ROUNDS times, as the job moves on; returns how many kills there were."""
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
            return json.loads((data_dir / "run" / "up.json").read_text())["children"].get(name)

        os.kill(wait_for(is_alive, timeout_s=60), signal.SIGKILL)
        kills += 1
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("database_url", database_urls())
def test_every_line_has_exactly_one_result_whatever_dies(tmp_path, database_url):
    messages = write_documents(tmp_path / "in.jsonl")
    data_dir = tmp_path / "data"
    with running_up(data_dir, BROS_DATABASE_URL=database_url) as up:
        api = Api(up["url"])
        batch_id = api.submit(tmp_path / "in.jsonl")
        kills = kill_at_random(data_dir, api, batch_id, random.Random(7))
        assert kills == len(VICTIMS) * ROUNDS

        def is_over() -> dict | None:
            batch = api.get(f"/v1/batches/{batch_id}").json()
            return batch if batch["status"] in ("completed", "failed", "expired") else None

        batch = wait_for(is_over, timeout_s=240)
        assert batch["status"] == "completed", batch
        assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
        lines = [
            json.loads(x) for x in api.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
        ]
    assert [line["custom_id"] for line in lines] == list(messages), "each once, in input order"
    expected = expected_texts(messages)
    for line in lines:
        content = line["response"]["body"]["choices"][0]["message"]["content"]
        assert content == expected[line["custom_id"]]
