"""What the commands say about jobs and files that failed, against a running server."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.cli.test_jobs import Cli, documents
from tests.services import wait_for
from tests.up_process import Up


@pytest.fixture(scope="module")
def cli(service: Up) -> Cli:
    return Cli(service.state()["url"])


def uploaded(cli: Cli, text: str) -> str:
    """Create a job without the check of the command line, and return its id once it has ended."""
    with httpx.Client(base_url=cli.env["BROS_URL"] + "/v1") as api:
        file = api.post("/files", data={"purpose": "batch"}, files={"file": ("f.jsonl", text)}).json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        job: str = api.post("/batches", json={**body, "defaults": {"prompt": "{text}"}}).json()["id"]
    wait_for(lambda: cli.json("status", job)["status"] in ("failed", "completed"))
    return job


def test_each_error_of_a_failed_job_is_shown_once(cli: Cli) -> None:
    job = uploaded(cli, "bad\n" * 5)
    assert cli.json("status", job)["status"] == "failed"
    shown = cli.ok("errors", job).splitlines()
    assert [line.count(f"Line {number}") for number, line in enumerate(shown, 1)] == [1] * 5
    status = cli.ok("status", job)
    assert status.count("error:") == 3
    assert f"and 2 more; `bros-batch errors {job}` shows all" in status


def test_the_error_of_a_whole_file_is_shown_once(cli: Cli) -> None:
    job = uploaded(cli, "\n\n")
    (line,) = cli.ok("errors", job).splitlines()
    assert line == "file  empty_file: The file has no lines."
    assert "more;" not in cli.ok("status", job)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_write_that_fails_after_the_job_says_where_the_results_are(cli: Cli) -> None:
    done = cli.run(
        "submit", "-", "--prompt", "{text}", "--max-tokens", "3", "-o", "/dev/full", stdin=documents(3)
    )
    assert done.returncode == 1
    assert "Cannot write /dev/full: no space left on device. The results are safe" in done.stderr
    job = done.stderr.split("bros-batch results ")[1].split()[0]
    assert len(cli.lines("results", job)) == 3


def test_ctrl_c_at_the_prompt_keeps_the_chat_and_its_history(cli: Cli) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "cli", "chat", "--max-tokens", "5", "--stats"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, stdin=follower, env=cli.env, **pipes)  # type: ignore[call-overload]
    assert process.stderr is not None

    def read_until(word: bytes) -> None:
        while word not in process.stderr.readline():
            assert process.poll() is None

    os.write(leader, b"Hello\n")
    read_until(b"first token after")
    os.write(leader, b"half-typed")
    process.send_signal(signal.SIGINT)
    read_until(b"Ctrl-D to exit)")
    os.write(leader, b"\x15Hello\n/reset\nHello\n\x04")
    out, _ = process.communicate(timeout=60)
    os.close(leader)
    os.close(follower)
    assert process.returncode == 0
    first, second, third = (line.replace(b"> ", b"") for line in out.split(b"\n") if line.strip(b"> "))
    assert first == third
    assert first != second, "the second question has the first in its history"
