"""Jobs on the simulated engine whose answers are known, and the check that every line has exactly one result.

The simulated engine's answers depend only on their prompts, so the check detects a result of the wrong line and a
result that was cut short.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Connection, func, select

from bros_batch.db import jobs, tables
from bros_batch.db.connections import open_database, reading
from bros_batch.db.table_rows import Job
from bros_batch.text.tokenizer import load_tokenizer
from engine.core.terms import SamplingParams
from engine.runner.simulated import SimulatedRunner
from tests.factories import runner_info
from tests.services import PATIENCE_S, wait_for

# Timeouts of all services, far shorter than the faults of the tests last.
IMPATIENT = {
    "BROS_LOST_AFTER_S": "3",
    "BROS_CLAIM_TIMEOUT_S": "3",
    "BROS_LEASE_S": "3",
    "BROS_VISIBILITY_TIMEOUT_S": "3",
    "BROS_PUMP_INTERVAL_S": "0.3",
    "BROS_SWEEP_INTERVAL_S": "1",
}


def simulated_engine(step_s: float = 0.01, rows: int = 16) -> tuple[str, ...]:
    """Flags of an engine that takes `step_s` per step, whatever is in it."""
    return ("--runner", "simulated", "--simulated-step-s", str(step_s), "--max-num-seqs", str(rows))


@dataclass(frozen=True, slots=True)
class KnownJob:
    """A batch file and the user message of each custom id."""

    path: Path
    messages: dict[str, str]
    max_tokens: int

    def expected_texts(self, model: Path) -> dict[str, str]:
        """Return the answer of the simulated engine to each message."""
        text = load_tokenizer(str(model))
        vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
        runner = SimulatedRunner(replace(runner_info(), vocab_size=vocab_size))
        sampling = SamplingParams(max_tokens=self.max_tokens)
        return {
            custom_id: text.decode(
                runner.continuation(text.encode_chat([{"role": "user", "content": content}]), sampling)
            )
            for custom_id, content in self.messages.items()
        }


def write_job(path: Path, num_lines: int, max_tokens: int) -> KnownJob:
    """Write a batch file."""
    messages = {f"doc-{i}": f"Document number {i}: " + "total 12.50 " * (i % 7) for i in range(num_lines)}
    with path.open("w") as file:
        for custom_id, content in messages.items():
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": content}],
                "max_tokens": max_tokens,
            }
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return KnownJob(path, messages, max_tokens)


class Api:
    """A client of the HTTP API that retries while the web process is away or reports a fault."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, verify=False, timeout=30)

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()

    def get(self, path: str) -> httpx.Response:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                response = self._client.get(path)
                if response.status_code < 500:
                    return response.raise_for_status()
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline_s, f"{path} did not answer in time"
            time.sleep(0.05)

    def upload(self, path: Path) -> httpx.Response:
        with path.open("rb") as file:
            return self._client.post("/v1/files", files={"file": file}, data={"purpose": "batch"})

    def create_batch(self, file_id: str) -> httpx.Response:
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return self._client.post("/v1/batches", json=body)

    def submit(self, job: KnownJob) -> str:
        """Upload a job's file and start the job. Returns the id of the batch."""
        file_id = self.upload(job.path).raise_for_status().json()["id"]
        batch_id: str = self.create_batch(file_id).raise_for_status().json()["id"]
        return batch_id

    def batch(self, batch_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"/v1/batches/{batch_id}").json()
        return answer

    def ended(self, batch_id: str) -> dict[str, Any] | None:
        """The batch, if it has ended."""
        batch = self.batch(batch_id)
        return batch if batch["status"] in ("completed", "failed", "expired", "cancelled") else None

    def num_done(self, batch_id: str) -> int:
        counts = self.batch(batch_id)["request_counts"]
        return int(counts["completed"] + counts["failed"])


# To make one takes longer than a query, and tests look ten times per second.
_database = cache(open_database)


def look(database_url: str, query: Callable[[Connection], Any]) -> Any:
    """The result of a query to the services' database, to which no connection is left."""
    database = _database(database_url)
    try:
        with reading(database) as connection:
            return query(connection)
    finally:
        database.dispose()


def job_row(database_url: str, job_id: str) -> Job:
    row = look(database_url, lambda connection: jobs.get_job(connection, job_id))
    assert isinstance(row, Job)
    return row


def item_statuses(database_url: str, job_id: str) -> dict[str, int]:
    """Number of items per status, counted from the rows."""
    status = tables.items.c.status
    query = select(status, func.count()).where(tables.items.c.job_id == job_id).group_by(status)
    return dict(look(database_url, lambda connection: [tuple(row) for row in connection.execute(query)]))


def max_attempts_of(database_url: str, job_id: str) -> int:
    """The largest number of times that one item of a job counted as lost."""
    query = select(func.max(tables.items.c.attempts)).where(tables.items.c.job_id == job_id)
    return int(look(database_url, lambda connection: connection.scalar(query)) or 0)


def assert_every_line_once(
    api: Api, batch_id: str, job: KnownJob, model: Path, database_url: str, *, timeout_s: float = 120
) -> None:
    """Wait until the job ends, and check that each line has its own answer, once, in the file, the rows and counts."""
    batch = wait_for(lambda: api.ended(batch_id), "the end of the job", timeout_s=timeout_s)
    assert batch is not None
    total = len(job.messages)
    assert batch["status"] == "completed", batch
    assert batch["request_counts"] == {"total": total, "completed": total, "failed": 0}, batch
    assert batch["error_file_id"] is None
    output = api.get(f"/v1/files/{batch['output_file_id']}/content").text
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["custom_id"] for line in lines] == list(job.messages), "each once, in input order"
    expected = job.expected_texts(model)
    for line in lines:
        content = line["response"]["body"]["choices"][0]["message"]["content"]
        assert content == expected[line["custom_id"]]
    row = job_row(database_url, batch_id)
    assert item_statuses(database_url, batch_id) == {"succeeded": total}
    assert (row.total, row.succeeded, row.failed, row.cancelled, row.expired) == (total, total, 0, 0, 0)
    tokens = select(func.sum(tables.items.c.prompt_tokens), func.sum(tables.items.c.output_tokens)).where(
        tables.items.c.job_id == batch_id
    )
    assert look(database_url, lambda connection: tuple(connection.execute(tokens).one())) == (
        row.prompt_tokens,
        row.output_tokens,
    )
