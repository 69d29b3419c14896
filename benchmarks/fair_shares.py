"""Do owners get their shares of bulk? A small job beside another owner's large one, and two owners of unequal weight.

    python -m benchmarks.fair_shares [--engine simulated|demo] [--rows 1000000] [--rounds 3]

`bros-batch up` runs with a new data directory. One owner's jobs of ten rows are submitted one after another, first on
an idle system and then while another owner's large job runs. Reported is the time from the request that creates a job
until it is completed. Then owners with weights of 1 and 3 have jobs of equal rows, and reported are the shares of the
tokens computed for each in `--seconds`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import write_result
from benchmarks.own_up import own_up
from tests.services import wait_for

SMALL_ROWS = 10
WEIGHTS = {"light": 1, "heavy": 3}
POLL_S = 0.02
PATIENCE_S = 600.0
ADMIN_KEY = "bros-key-of-the-benchmark"


def key_of(data_dir: Path, owner: str, weight: float) -> str:
    """Create a key of an owner."""
    command = [
        sys.executable,
        "-m",
        "cli",
        "keys",
        "create",
        owner,
        "--owner",
        owner,
        "--weight",
        str(weight),
        "--json",
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BROS_")}
    made = subprocess.run(
        [*command, "--data-dir", str(data_dir)], env=kept, check=True, capture_output=True, text=True
    )
    key: str = json.loads(made.stdout)["key"]
    return key


class Owner:
    """An owner's jobs, through its own key."""

    def __init__(self, http: httpx.Client, key: str) -> None:
        self._http = http
        self._headers = {"authorization": f"Bearer {key}"}
        self._num_rows = 0  # no two rows are equal, so no answer is reused

    def is_known(self) -> bool:
        return self._http.get("/v1/batches", headers=self._headers).is_success

    def submit(self, rows: int, tokens: int) -> tuple[str, float]:
        """Create a job. Returns its id and the time just before the request that created it."""
        first = self._num_rows
        self._num_rows += rows
        lines = (f"Invoice {first + i} of ACME Ltd, 3 March 2026, total EUR {i % 90}.50" for i in range(rows))
        data = "".join(f'{{"text": "{line}"}}\n' for line in lines)
        file = self._request(
            "POST", "/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"}
        )
        body = {
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "defaults": {"prompt": "{text}", "max_tokens": tokens, "ignore_eos": True, "temperature": 0},
        }
        started_s = time.monotonic()
        return self._request("POST", "/v1/batches", json=body)["id"], started_s

    def seconds_of_small_job(self, tokens: int) -> float:
        job, started_s = self.submit(SMALL_ROWS, tokens)
        while self.state(job)["status"] != "completed":
            assert time.monotonic() - started_s < PATIENCE_S, "the small job does not end"
            time.sleep(POLL_S)
        return time.monotonic() - started_s

    def state(self, job: str) -> dict[str, Any]:
        return self._request("GET", f"/v1/batches/{job}")

    def completed(self, job: str) -> int:
        count: int = self.state(job)["request_counts"]["completed"]
        return count

    def tokens(self, job: str) -> int:
        """The tokens of the job's results so far."""
        usage = self.state(job)["usage"]
        total: int = usage["input_tokens"] + usage["output_tokens"]
        return total

    def cancel(self, job: str) -> None:
        self._request("POST", f"/v1/batches/{job}/cancel")

    def _request(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        answer = self._http.request(method, path, headers=self._headers, **arguments)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found


@contextlib.contextmanager
def running(owner: Owner, rows: int, tokens: int) -> Iterator[str]:
    """A job that runs meanwhile, from its first result on."""
    job, _ = owner.submit(rows, tokens)
    wait_for(lambda: owner.completed(job) > 0, "the first result of a job", timeout_s=PATIENCE_S)
    try:
        yield job
    finally:
        owner.cancel(job)


def shares(owners: dict[str, Owner], jobs: dict[str, str], seconds: float) -> dict[str, float]:
    before = {name: owner.tokens(jobs[name]) for name, owner in owners.items()}
    time.sleep(seconds)  # the window
    gained = {name: owner.tokens(jobs[name]) - before[name] for name, owner in owners.items()}
    total = sum(gained.values())
    return {name: round(count / total, 4) for name, count in gained.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=["simulated", "demo"], default="simulated")
    parser.add_argument("--step-s", type=float, default=0.02)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the large job")
    parser.add_argument("--tokens", type=int, default=50, help="output tokens of a row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="window in which shares are measured")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    engine: tuple[str, ...] = ()
    if options.engine == "simulated":
        engine = ("--runner", "simulated", "--simulated-step-s", str(options.step_s))
    with tempfile.TemporaryDirectory(prefix="bros-fair-shares-") as directory:
        data_dir = Path(directory) / "data"
        with (
            own_up(data_dir, "--api-key", ADMIN_KEY, engine=engine) as state,
            httpx.Client(base_url=state["url"], trust_env=False, timeout=120) as http,
        ):
            weights = {"large": 1.0, "small": 1.0, **WEIGHTS}
            owners = {name: Owner(http, key_of(data_dir, name, weight)) for name, weight in weights.items()}
            for name, owner in owners.items():
                wait_for(owner.is_known, f"the key of {name}")
            small = owners["small"]
            small.seconds_of_small_job(options.tokens)  # loads the tokenizer
            alone = [small.seconds_of_small_job(options.tokens) for _ in range(options.rounds)]
            with running(owners["large"], options.rows, options.tokens):
                beside = [small.seconds_of_small_job(options.tokens) for _ in range(options.rounds)]
            weighted = {name: owners[name] for name in WEIGHTS}
            with contextlib.ExitStack() as stack:
                jobs = {
                    name: stack.enter_context(running(owner, min(options.rows, 100_000), options.tokens))
                    for name, owner in weighted.items()
                }
                found = shares(weighted, jobs, options.seconds)
    result = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "load": os.getloadavg(),
        "small_job_alone_s": summary(alone),
        "small_job_beside_large_s": summary(beside),
        "weights": WEIGHTS,
        "shares": found,
    }
    print(json.dumps(result, indent=2))
    print(write_result(options.out, f"fair-shares-{options.engine}", result))


def summary(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 3), "max": round(max(seconds), 3)}


if __name__ == "__main__":
    main()
