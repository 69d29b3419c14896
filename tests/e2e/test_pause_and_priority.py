"""An urgent job overtakes a long one, and a paused job stops, with all services running."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from engine.wire.client import EngineClient
from tests.services import wait_for
from tests.up_process import Up, running_up

ENGINE = ("--runner", "simulated", "--simulated-step-s", "0.01", "--max-num-seqs", "16", "--be-prefetch", "8")
LINES = 80
TOKENS = 300


def submit(client: httpx.Client, lines: int, tokens: int, **job: Any) -> str:
    """Create a job with lines `0` to `lines - 1`."""
    requests = [
        {
            "custom_id": f"{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "tiny",
                "messages": [{"role": "user", "content": f"Document {number}"}],
                "max_tokens": tokens,
                "ignore_eos": True,
            },
        }
        for number in range(lines)
    ]
    data = "".join(json.dumps(request) + "\n" for request in requests)
    file = client.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"})
    body = {
        "input_file_id": file.raise_for_status().json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        **job,
    }
    answer: dict[str, Any] = client.post("/v1/batches", json=body).raise_for_status().json()
    return str(answer["id"])


def batch(client: httpx.Client, job: str) -> dict[str, Any]:
    answer: dict[str, Any] = client.get(f"/v1/batches/{job}").raise_for_status().json()
    return answer


def completed(client: httpx.Client, job: str) -> int:
    return int(batch(client, job)["request_counts"]["completed"])


def bulk_tokens(up: Up) -> tuple[int, int]:
    """Number of bulk requests in the engine, and of the tokens that it has generated for bulk."""

    async def ask() -> tuple[int, int]:
        client = await EngineClient.connect(f"unix://{up.data_dir / 'run' / 'engine.sock'}")
        try:
            bulk = (await client.stats())["lanes"]["be"]
            return bulk["running"] + bulk["waiting"], bulk["generated_tokens"]
        finally:
            await client.close()

    return asyncio.run(ask())


def test_an_urgent_job_overtakes_and_a_paused_job_stops(tmp_path: Path) -> None:
    with (
        running_up(tmp_path / "data", engine=ENGINE) as up,
        httpx.Client(base_url=up.state()["url"], trust_env=False, verify=False, timeout=60) as client,
    ):
        long = submit(client, LINES, TOKENS)
        wait_for(lambda: bulk_tokens(up)[0] >= 16, "a full engine")
        urgent = submit(client, 3, 5, priority=10)
        wait_for(lambda: completed(client, urgent) == 3, "the urgent job")
        assert completed(client, long) < LINES

        client.post(f"/v1/batches/{long}/pause").raise_for_status()
        wait_for(lambda: bulk_tokens(up)[0] == 0, "the end of all bulk")
        tokens = bulk_tokens(up)[1]
        other = submit(client, 10, 20)  # less urgent than the paused one, which is older
        wait_for(lambda: batch(client, other)["status"] == "completed", "another job, while one is paused")
        assert bulk_tokens(up)[1] == tokens + 10 * 20, "the paused job has computed nothing"
        before = completed(client, long)
        assert before < LINES and batch(client, long)["status"] == "paused"

        client.post(f"/v1/batches/{long}/resume").raise_for_status()
        done = wait_for(lambda: _ended(client, long), "the end of the resumed job")
        counts = {"total": LINES, "completed": LINES, "failed": 0}
        assert (done["status"], done["request_counts"]) == ("completed", counts)
        output = client.get(f"/v1/files/{done['output_file_id']}/content").text
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["custom_id"] for line in lines] == [f"{number}" for number in range(LINES)]
    for line in lines:
        assert line["response"]["body"]["usage"]["completion_tokens"] == TOKENS


def _ended(client: httpx.Client, job: str) -> dict[str, Any] | None:
    found = batch(client, job)
    return found if found["status"] in ("completed", "failed", "expired", "cancelled") else None
