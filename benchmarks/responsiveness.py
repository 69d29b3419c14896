"""How soon do an urgent job and a pause take effect while thousands of lines of another job are queued?

    python -m benchmarks.responsiveness [--engine simulated|demo] [--lines 5000] [--tokens 200] [--rounds 5]

`bros-batch up` runs with a new data directory. Jobs of one line and priority 10 are submitted one after another, first
while the system is idle and then while a job of many lines runs. Reported is the time from the request that creates a
job until its result can be read. Then the large job is paused. Reported is the time from that request until the engine
has no bulk request left, and how many tokens it computes after that.

With the simulated engine, `--step-s` times `--tokens` is about how long a line of the large job takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import write_result
from benchmarks.own_up import own_up
from engine.wire.client import EngineClient
from tests.services import wait_for

POLL_S = 0.02
QUIET_S = 3.0
PATIENCE_S = 600.0
PROMPT = "Extract vendor, date, total and currency as JSON.\n\n{text}"


def submit(client: httpx.Client, lines: int, tokens: int, priority: int) -> tuple[str, float]:
    """Create a job. Returns its id and the time just before the request that created it."""
    texts = (f"Invoice {i} of ACME Ltd, 3 March 2026, total EUR {i % 90}.50" for i in range(lines))
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    file = client.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"})
    body = {
        "input_file_id": file.raise_for_status().json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "priority": priority,
        "defaults": {"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "temperature": 0},
    }
    started_s = time.monotonic()
    return client.post("/v1/batches", json=body).raise_for_status().json()["id"], started_s


def first_result_s(client: httpx.Client, tokens: int) -> float:
    """How long a job of one line and priority 10 takes until its result can be read."""
    job, started_s = submit(client, 1, tokens, 10)
    while not client.get(f"/v1/batches/{job}/results").raise_for_status().content:
        assert time.monotonic() - started_s < PATIENCE_S, "the urgent job has no result"
        time.sleep(POLL_S)
    return time.monotonic() - started_s


def completed(client: httpx.Client, job: str) -> int:
    count: int = client.get(f"/v1/batches/{job}").raise_for_status().json()["request_counts"]["completed"]
    return count


def bulk_of_engine(socket: Path) -> dict[str, Any]:
    """The engine's own counters of bulk."""

    async def ask() -> dict[str, Any]:
        client = await EngineClient.connect(f"unix://{socket}")
        try:
            bulk: dict[str, Any] = (await client.stats())["lanes"]["be"]
            return bulk
        finally:
            await client.close()

    return asyncio.run(ask())


def measure_pause(client: httpx.Client, socket: Path, job: str) -> dict[str, Any]:
    started_s = time.monotonic()
    client.post(f"/v1/batches/{job}/pause").raise_for_status()
    answered_s = time.monotonic() - started_s
    while (bulk := bulk_of_engine(socket))["running"] + bulk["waiting"]:
        assert time.monotonic() - started_s < PATIENCE_S, "the paused job does not stop"
        time.sleep(POLL_S)
    stopped_s = time.monotonic() - started_s
    time.sleep(QUIET_S)
    later = bulk_of_engine(socket)
    counts = completed(client, job)
    client.post(f"/v1/batches/{job}/resume").raise_for_status()
    wait_for(lambda: completed(client, job) > counts, "results after the pause", timeout_s=PATIENCE_S)
    return {
        "request_s": round(answered_s, 3),
        "stopped_after_s": round(stopped_s, 3),
        "tokens_after_that": later["generated_tokens"] - bulk["generated_tokens"],
    }


def summary(seconds: list[float]) -> dict[str, float]:
    return {"median_s": round(statistics.median(seconds), 3), "max_s": round(max(seconds), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=["simulated", "demo"], default="simulated")
    parser.add_argument("--step-s", type=float, default=0.02)
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=200, help="output tokens of a line of the large job")
    parser.add_argument("--urgent-tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    engine = []
    if options.engine == "simulated":
        engine: tuple[str, ...] = ("--runner", "simulated", "--simulated-step-s", str(options.step_s))
    with tempfile.TemporaryDirectory(prefix="bros-responsiveness-") as directory:
        data_dir = Path(directory) / "data"
        with (
            own_up(data_dir, engine=engine) as state,
            httpx.Client(base_url=state["url"], trust_env=False, timeout=60) as client,
        ):
            first_result_s(client, options.urgent_tokens)  # loads the tokenizer
            idle = [first_result_s(client, options.urgent_tokens) for _ in range(options.rounds)]
            large, _ = submit(client, options.lines, options.tokens, 0)
            wait_for(lambda: completed(client, large) > 0, "the large job", timeout_s=PATIENCE_S)
            busy = [first_result_s(client, options.urgent_tokens) for _ in range(options.rounds)]
            socket = data_dir / "run" / "engine.sock"
            pauses = [measure_pause(client, socket, large) for _ in range(options.rounds)]
            left = options.lines - completed(client, large)
            client.post(f"/v1/batches/{large}/cancel").raise_for_status()
    result = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "load": os.getloadavg(),
        "idle_first_result": summary(idle),
        "busy_first_result": summary(busy),
        "lines_left": left,
        "pauses": pauses,
    }
    print(json.dumps(result, indent=2))
    print(write_result(options.out, f"responsiveness-{options.engine}", result))


if __name__ == "__main__":
    main()
