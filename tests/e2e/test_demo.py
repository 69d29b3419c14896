"""`bros-batch demo`: all services with the demo model, leaving nothing but the results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from bros_batch.demo.documents import FIELDS, HELD_OUT_SEED, generate_documents
from bros_batch.demo.run import grade
from bros_batch.settings import DEMO_MODEL_DIR
from bros_batch.up.service_commands import redis_binary
from tests.services import unavailable, wait_for
from tests.up_process import MARK, REAL, SIMULATED, Up


def start_demo(directory: Path, *flags: str) -> Up:
    """Start the demo as a process in `directory`, with its temporary files there too."""
    if redis_binary() is None:
        unavailable("Redis")
    if not (DEMO_MODEL_DIR / "config.json").exists():
        unavailable("the demo model")
    mark = uuid.uuid4().hex
    env = {**os.environ, MARK: mark, "TMPDIR": str(directory / "tmp")}
    (directory / "tmp").mkdir()
    command = [sys.executable, "-P", "-m", "cli", "demo", *flags]
    log = directory / "demo.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env,
            cwd=directory,
            start_new_session=True,
        )
    return Up(process, directory, mark, log)


def assert_nothing_is_left(demo: Up) -> None:
    demo.wait_until_nothing_is_left()
    assert list((demo.data_dir / "tmp").glob("bros-*")) == []


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first start on a machine compiles kernels, which a busy machine does slowly
def test_the_demo_reads_documents_and_chats_and_leaves_only_results(tmp_path):
    demo = start_demo(tmp_path, "--documents", "40", "--json", "--", *REAL)
    out, _ = demo.process.communicate(timeout=840)
    assert demo.process.returncode == 0, demo.output()
    report = json.loads(out)
    assert (report["documents"], report["failed"]) == (40, 0)
    assert set(report["accuracy"]) == set(FIELDS)
    assert report["accuracy_all_fields"] >= 0.95, report["accuracy"]
    assert report["documents_per_s"] > 0
    assert report["tokens_per_s"] > 0
    assert len(report["chats"]) == 3
    assert sum(chat["is_right"] for chat in report["chats"]) == 3, report["chats"]
    assert all(chat["ttft_s"] > 0 for chat in report["chats"])
    results = (tmp_path / "bros-demo-results" / "results.jsonl").read_bytes().splitlines()
    assert len(results) == 40
    assert (tmp_path / "bros-demo-results" / "documents.jsonl").read_bytes().count(b"\n") == 40
    assert_nothing_is_left(demo)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tmp_path, signum):
    demo = start_demo(tmp_path, "--documents", "2000", "--", *SIMULATED)
    wait_for(lambda: "Submitting" in demo.output(), timeout_s=90)
    demo.process.send_signal(signum)
    out, _ = demo.process.communicate(timeout=90)
    assert demo.process.returncode == 130
    assert out == ""
    assert "Traceback" not in demo.output()
    assert_nothing_is_left(demo)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent death signal")
def test_a_killed_demo_leaves_no_process(tmp_path):
    demo = start_demo(tmp_path, "--documents", "2000", "--", *SIMULATED)
    wait_for(lambda: len(demo.family()) > 4)
    demo.process.kill()
    demo.process.communicate()
    demo.wait_until_nothing_is_left()


def test_services_that_do_not_start_are_reported_with_their_output(tmp_path):
    demo = start_demo(tmp_path, "--documents", "5", "--", "--no-such-flag")
    demo.process.communicate(timeout=90)
    assert demo.process.returncode == 1
    assert "bros-batch: The services did not start:" in demo.output()
    assert "unrecognized arguments: --no-such-flag" in demo.output()
    assert_nothing_is_left(demo)


def test_grading_counts_only_exact_fields():
    documents = list(generate_documents(4, HELD_OUT_SEED))

    def line(number: int, content: str) -> bytes:
        body = {"choices": [{"message": {"content": content}}]}
        record = {"custom_id": documents[number].document_id, "response": {"body": body}}
        return json.dumps(record).encode()

    right = documents[0].truth
    results = [
        line(0, json.dumps(right)),
        line(1, json.dumps({**documents[1].truth, "total": "0"})),
        line(2, "no JSON"),
    ]
    everything = set(FIELDS)
    assert grade(documents, results) == [everything, everything - {"total"}, set(), set()]
