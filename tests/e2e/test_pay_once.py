"""Guarantee: whatever is interrupted, an answer that is known or in hand is not computed again, and no row is lost.

A table in which 30% of the rows are duplicates is submitted again and again by a client that is killed each time, while
the engine and the web process are killed as well.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.known_jobs import IMPATIENT, Api, KnownJob, assert_every_line_once, job_row, simulated_engine
from tests.services import wait_for
from tests.up_process import Up, running_up

NUM_UNIQUE = 210
NUM_ROWS = 300
KILLS = int(
    os.environ.get("BROS_TEST_PAY_ONCE_KILLS", "6")
)  # of the engine, the web process and the client in turn
SETTINGS = {**IMPATIENT, "BROS_MAX_ATTEMPTS": "50"}


def write_table(path: Path) -> KnownJob:
    """Write 300 greedy requests in random order, 90 of which repeat the prompt of another one."""
    numbers = [*range(NUM_UNIQUE), *range(NUM_ROWS - NUM_UNIQUE)]
    random.Random(11).shuffle(numbers)
    messages = {f"row-{i}": f"Document {number} of the table." for i, number in enumerate(numbers)}
    job = KnownJob(path, messages, max_tokens=24)
    with path.open("w") as file:
        for custom_id, content in messages.items():
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": content}],
                "max_tokens": job.max_tokens,
                "temperature": 0,
            }
            line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return job


def notebook(up: Up, job: KnownJob) -> subprocess.Popen[str]:
    """Start a client that submits the table and waits for it."""
    command = [sys.executable, "-m", "cli", "submit", str(job.path), "--wait", "--json"]
    env = {**os.environ, "BROS_URL": up.state()["url"]}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env, start_new_session=True
    )


def batches(api: Api) -> list[str]:
    return [batch["id"] for batch in api.get("/v1/batches?limit=100").json()["data"]]


@pytest.mark.slow
def test_a_table_that_is_submitted_again_after_each_crash_is_computed_once(tmp_path, database_url):
    job = write_table(tmp_path / "table.jsonl")
    rng = random.Random(3)
    engine = simulated_engine(step_s=0.02, rows=8)
    with (
        running_up(tmp_path / "data", engine=engine, BROS_DATABASE_URL=database_url, **SETTINGS) as up,
        Api(up.state()["url"]) as api,
    ):
        seen: list[str] = []
        for kill in range(KILLS):
            wait_for(up.is_ready, timeout_s=120)
            client = notebook(up, job)

            def has_submitted(known: tuple[str, ...] = tuple(seen)) -> list[str]:
                return [each for each in batches(api) if each not in known]

            submitted = wait_for(has_submitted, timeout_s=120)
            seen += submitted
            threshold = rng.uniform(0, 0.9) * NUM_ROWS * (kill + 1) / KILLS

            def has_reached(batch_id: str = submitted[0], done: float = threshold) -> bool:
                return api.num_done(batch_id) >= done or api.ended(batch_id) is not None

            wait_for(has_reached, timeout_s=120)
            victim = ("engine", "web", "notebook")[kill % 3]
            if victim != "notebook":
                up.kill(victim)
            client.kill()  # its job goes on, but whoever ran it has lost sight of it
            client.communicate()
        wait_for(up.is_ready, timeout_s=120)
        last = api.submit(job)
        assert_every_line_once(api, last, job, tmp_path / "data-model", database_url, timeout_s=240)
        for batch_id in seen:
            wait_for(lambda batch_id=batch_id: api.ended(batch_id), timeout_s=120)
        rows = [job_row(database_url, batch_id) for batch_id in (*seen, last)]
        assert [row.succeeded for row in rows] == [NUM_ROWS] * (KILLS + 1), "no row is lost"
        computed = sum(row.succeeded - row.reused for row in rows)
        print(f"computed {computed} of {NUM_UNIQUE} different rows in {KILLS + 1} jobs of {NUM_ROWS} rows")
        # What the engine has in hand when it is killed: its rows, and the items that it has fetched ahead.
        in_hand = 8 + 32
        assert NUM_UNIQUE <= computed <= NUM_UNIQUE + KILLS * in_hand
        assert rows[-1].reused >= NUM_ROWS - in_hand
