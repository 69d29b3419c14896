"""The job commands, from submit to results, against a running server."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from python_calamine import CalamineWorkbook

from tests.services import wait_for
from tests.up_process import Up


class Cli:
    """Runs `bros-batch` as a process against one server."""

    subprocess: Any = subprocess  # see conftest.py

    def __init__(self, url: str) -> None:
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("BROS_")}
        self.env |= {"BROS_URL": url, "COLUMNS": "100"}

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", *arguments]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self.subprocess.Popen(command, text=True, env=self.env, **pipes) as process:
            try:
                out, messages = process.communicate(stdin, timeout=120)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, out, messages)

    def ok(self, *arguments: str, stdin: str = "") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lines(self, *arguments: str) -> list[str]:
        """Output lines of JSON, split at newlines only: a string may contain other line separators."""
        return self.ok(*arguments).removesuffix("\n").split("\n")

    def json(self, *arguments: str, stdin: str = "") -> dict:
        answer: dict = json.loads(self.ok(*arguments, "--json", stdin=stdin))
        return answer


@pytest.fixture(scope="module")
def cli(service: Up) -> Cli:
    return Cli(service.state()["url"])


def documents(count: int) -> str:
    return "".join(json.dumps({"id": f"doc-{n}", "text": f"text number {n}"}) + "\n" for n in range(count))


@pytest.fixture(scope="module")
def finished(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A completed job of 40 documents, one of them broken."""
    path = tmp_path_factory.mktemp("docs") / "mixed.jsonl"
    path.write_text(documents(39) + "not json\n")
    done = cli.run(
        "submit", str(path), "--prompt", "Summarize: {text}", "--max-tokens", "8", "--wait", "--json"
    )
    assert done.returncode == 1, "an item has failed"
    assert "1 of 40 items failed; run `bros-batch errors batch_" in done.stderr
    batch: dict = json.loads(done.stdout)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 40, "completed": 39, "failed": 1}
    return batch


def test_submit_wait_writes_results_and_plain_progress(cli, tmp_path):
    source, output = tmp_path / "docs.jsonl", tmp_path / "out.jsonl"
    source.write_text(documents(30))
    flags = [
        "--prompt",
        "{text}",
        "--system",
        "Be brief.",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
        "--seed",
        "1",
    ]
    done = cli.run("submit", str(source), *flags, "--name", "nightly", "--priority", "3", "-o", str(output))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [row["id"] for row in rows] == [f"doc-{n}" for n in range(30)]
    assert all(list(row) == ["id", "text", "answer", "_error"] and row["answer"] for row in rows)
    assert "status:  completed after " in done.stdout
    assert "nightly: completed, 30 of 30 done" in done.stderr
    assert f"30 results in {output}" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr, "no terminal, no colors"
    newest = cli.json("status", "last")
    assert (newest["name"], newest["priority"]) == ("nightly", 3)


def test_submit_reads_stdin_and_prints_the_job_id(cli):
    job = cli.ok("submit", "-", "--prompt", "{text}", "--max-tokens", "3", stdin=documents(200)).strip()
    assert job.startswith("batch_")
    assert cli.run("status", job, "--watch").returncode == 0
    assert len(cli.lines("results", job)) == 200


def test_submit_writes_only_results_to_stdout(cli):
    out = cli.ok("submit", "-", "--prompt", "{text}", "--max-tokens", "3", "-o", "-", stdin=documents(3))
    assert [json.loads(line)["id"] for line in out.strip().split("\n")] == ["doc-0", "doc-1", "doc-2"]


def test_openai_batch_lines_need_no_prompt(cli):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body}
    batch = cli.json("submit", "-", "--wait", stdin=json.dumps(line))
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


def test_a_rejected_job_is_reported_in_one_sentence(cli):
    done = cli.run("submit", "-", "--prompt", "{text}", "--deadline", "yesterday", stdin=documents(1))
    assert done.returncode == 1
    assert done.stderr.startswith("bros-batch: Invalid 'deadline': it must be")
    assert not done.stdout


def test_jobs_are_found_by_prefix_and_by_last(cli, finished):
    bare = finished["id"].removeprefix("batch_")
    for reference in (finished["id"], finished["id"][:20], bare[:12]):
        assert cli.json("status", reference)["id"] == finished["id"]
    missing = cli.run("status", "zzz")
    assert missing.returncode == 1
    assert (
        missing.stderr == "bros-batch: No job id starts with 'zzz'. Run `bros-batch list` to see the jobs.\n"
    )
    full = cli.run("status", "batch_" + "0" * 24)
    assert full.returncode == 1
    cli.ok("submit", "-", "--prompt", "{text}", "--wait", stdin=documents(1))  # a second job
    ambiguous = cli.run("status", "batch_")
    assert "jobs start with 'batch_'. Enter more of the id." in ambiguous.stderr


def test_list_is_a_table_or_json(cli, finished):
    table = cli.ok("list", "--limit", "100").splitlines()
    assert table[0].split() == ["JOB", "NAME", "STATUS", "DONE", "FAILED", "NOT", "RUN", "AGE", "LEFT"]
    (row,) = (line for line in table if finished["id"] in line)
    assert row.split()[1:6] == ["mixed.jsonl", "completed", "39/40", "1", "0"]
    listed = json.loads(cli.ok("list", "--json", "--limit", "100"))
    assert finished["id"] in [batch["id"] for batch in listed]
    assert len(json.loads(cli.ok("list", "--json", "--limit", "1"))) == 1
    assert json.loads(cli.ok("list", "--json", "--status", "cancelled", "--limit", "1")) in ([], listed[:0])
    assert cli.run("list", "--status", "nonsense").returncode == 1


def test_results_and_errors(cli, finished, tmp_path):
    lines = cli.lines("results", finished["id"])
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [*(f"doc-{n}" for n in range(39)), None]
    assert [bool(row["answer"]) for row in rows] == [True] * 39 + [False]
    assert "Line 40" in rows[-1]["_error"] and rows[0]["_error"] is None
    done = cli.run("results", finished["id"], "-o", str(tmp_path / "r.jsonl"))
    assert done.stdout == ""
    assert (tmp_path / "r.jsonl").read_text() == "\n".join([*lines, ""])
    (error,) = cli.ok("errors", finished["id"]).splitlines()
    assert "invalid_request: Line 40" in error
    (record,) = map(json.loads, cli.ok("errors", finished["id"], "--json").splitlines())
    assert record["error"]["code"] == "invalid_request"


def test_results_as_tables(cli, finished, tmp_path):
    path = tmp_path / "r.csv"
    done = cli.run("results", finished["id"], "-o", str(path))
    assert done.stderr == f"40 rows in {path}, 1 of them without an answer (see the column _error)\n"
    with path.open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "text", "answer", "_error"]
    assert [row[:2] for row in rows[:39]] == [[f"doc-{n}", f"text number {n}"] for n in range(39)]
    for name in ("r.parquet", "r.xlsx", "r.tsv"):
        cli.ok("results", finished["id"], "-o", str(tmp_path / name))
    table = pyarrow.parquet.read_table(tmp_path / "r.parquet")
    assert table.column("text").to_pylist() == [*(f"text number {n}" for n in range(39)), None]
    sheet = CalamineWorkbook.from_path(tmp_path / "r.xlsx").get_sheet_by_index(0).to_python()
    assert [row[0] for row in sheet] == ["id", *(f"doc-{n}" for n in range(39)), ""]

    (failed,) = cli.lines("results", finished["id"], "--only-failed", "--select", "_error,answer")
    assert list(json.loads(failed)) == ["_error", "answer"]
    wrong = cli.run("results", finished["id"], "--select", "txt", "-o", str(path))
    assert wrong.returncode == 2 and path.stat().st_size > 1000, "the file is as it was"
    assert wrong.stderr == (
        "bros-batch: There is no column 'txt'. Did you mean 'text'? The columns are: id, text, answer, _error.\n"
    )


def test_the_results_of_openai_batch_lines_keep_their_format_unless_a_table_is_asked_for(cli, tmp_path):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi, who?"}], "max_tokens": 4}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body}
    job = cli.json("submit", "-", "--wait", stdin=json.dumps(line))["id"]
    (result,) = map(json.loads, cli.lines("results", job))
    assert result["response"]["body"]["object"] == "chat.completion"
    cli.ok("results", job, "-o", str(tmp_path / "r.csv"))
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["custom_id"], row["text"]) == ("x", "Hi, who?")
    assert row["answer"] == result["response"]["body"]["choices"][0]["message"]["content"]
    refused = cli.run("results", job, "--select", "text")
    assert refused.returncode == 2 and "--select is for tables" in refused.stderr


def test_rows_are_computed_again_by_number(cli):
    job = cli.ok(
        "submit", "-", "--prompt", "{text}", "--max-tokens", "3", "--wait", "--json", stdin=documents(6)
    )
    job = json.loads(job)["id"]
    for wrong, message in (("0", "numbered from 1"), ("5-3", "not a range"), ("a", "'a' is not a row")):
        done = cli.run("rerun", job, "--rows", wrong)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert cli.run("rerun", job).returncode == 2
    assert "It has no row 7" in cli.run("rerun", job, "--rows", "6-7").stderr
    assert cli.ok("rerun", job, "--rows", "2,4-5") == f"{job} is in_progress\n"
    assert cli.run("status", job, "--watch").returncode == 0
    assert len(cli.lines("results", job)) == 6
    assert "No row of it failed" in cli.run("rerun", job, "--only-failed").stderr


def test_pause_resume_cancel_rerun(cli):
    job = cli.ok("submit", "-", "--prompt", "{text}", "--max-tokens", "200", stdin=documents(1500)).strip()
    wait_for(lambda: cli.json("status", job)["status"] == "in_progress")
    assert cli.ok("pause", job) == f"{job} is paused\n"
    partial = cli.run("results", job)
    assert "rows so far; the job is paused" in partial.stderr
    assert partial.stdout.count("\n") < 1500
    assert cli.json("resume", job)["status"] == "in_progress"
    assert cli.json("pause", job)["status"] == "paused"
    assert cli.json("cancel", job)["status"] in ("cancelling", "cancelled")
    wait_for(lambda: cli.json("status", job)["status"] == "cancelled")
    watched = cli.run("status", job, "--watch", "--json")
    assert watched.returncode == 1, "a cancelled job counts as a failure"
    assert json.loads(watched.stdout)["status"] == "cancelled"
    again = cli.run("pause", job)
    assert again.returncode == 1
    assert "cannot" in again.stderr
    assert cli.json("rerun", job, "--only-failed")["status"] == "in_progress"
    assert cli.run("status", job, "--watch").returncode == 0
    assert len(cli.lines("results", job)) == 1500


def test_ctrl_c_while_waiting_leaves_the_job_running(cli, tmp_path):
    command = [
        sys.executable,
        "-m",
        "cli",
        "submit",
        "-",
        "--prompt",
        "{text}",
        "--max-tokens",
        "200",
        "-o",
        str(tmp_path / "all of them.csv"),
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=cli.env, **pipes)  # type: ignore[call-overload]
    assert process.stdin is not None
    process.stdin.write(documents(4000))
    process.stdin.close()
    process.stdin = None
    first = process.stderr.readline()
    assert first.startswith("batch_") or "reading the file" in first
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "The job continues to run. To watch it again: bros-batch status batch_" in stderr
    assert "Traceback" not in stderr
    job = stderr.split("bros-batch status ")[1].split()[0]
    assert f"bros-batch results {job} -o '{tmp_path / 'all of them.csv'}'" in stderr
    assert cli.json("status", job)["status"] in ("validating", "in_progress")
    cli.ok("cancel", job)


def test_a_terminal_gets_a_live_bar(cli, tmp_path):
    source = tmp_path / "docs.jsonl"
    source.write_text(documents(20))
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "cli", "submit", str(source), "--prompt", "{text}", "--wait"]
    done = subprocess.run(
        command, stderr=follower, stdout=subprocess.PIPE, text=True, env={**cli.env, "TERM": "xterm"}
    )
    os.close(follower)
    screen = os.read(leader, 1_000_000).decode()
    os.close(leader)
    assert done.returncode == 0
    assert "\x1b[" in screen
    assert "of 20 done" in screen
    assert "\x1b" not in done.stdout


def test_chat_answers(cli):
    answer = cli.json("chat", "Hello there", "--max-tokens", "6")
    assert answer["usage"]["completion_tokens"] <= 6
    assert answer["ttft_s"] > 0
    done = cli.run("chat", "Hello", "there", "--max-tokens", "6", "--stats")
    assert done.stdout == answer["text"] + "\n", "the simulated engine is deterministic"
    assert done.stderr.startswith("(first token after ")
    assert cli.ok("chat", "-", "--max-tokens", "6", stdin="Hello there") == done.stdout
    assert cli.ok("chat", "--max-tokens", "6", stdin="Hello there") == done.stdout
    rejected = cli.run("chat", "Hello", "--model", "gpt-7")
    assert rejected.returncode == 1
    assert rejected.stderr.startswith("bros-batch: The model 'gpt-7' is not served here")
    assert "--model-alias 'gpt-7=tiny'" in rejected.stderr and "submit" not in rejected.stderr
    assert cli.run("chat", stdin="").returncode == 2


def test_an_interactive_chat_keeps_its_history_until_reset(cli):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "cli", "chat", "--max-tokens", "5", "--stats"]
    process = subprocess.Popen(
        command, stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cli.env
    )
    os.write(leader, b"Hello\nHello\n/reset\nHello\n\x04")
    out, stderr = process.communicate(timeout=60)
    os.close(leader)
    os.close(follower)
    assert process.returncode == 0
    first, second, third = (line.replace(b"> ", b"") for line in out.split(b"\n") if line.strip(b"> "))
    assert first == third
    assert first != second, "the second question has the first in its history"
    assert stderr.count(b"first token after") == 3


def test_a_local_up_is_found_without_a_url(cli, service, tmp_path):
    env = {name: value for name, value in cli.env.items() if name != "BROS_URL"}
    command = [sys.executable, "-m", "cli", "list", "--json"]
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    (tmp_path / "bros-data").symlink_to(service.data_dir)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), list)


def test_a_closed_pipe_is_not_reported(cli, finished):
    command = f"{sys.executable} -m cli results {finished['id']} | head -n 1"
    done = subprocess.run(["bash", "-c", command], env=cli.env, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_doctor_finds_a_healthy_installation(cli, service):
    flags = ["--data-dir", str(service.data_dir)]
    report = cli.json("doctor", *flags)
    health = {finding["name"]: finding["health"] for finding in report["findings"]}
    assert report["ok"]
    for name in ("python", "data directory", "model", "database", "redis", "engine", "web"):
        assert health[name] == "ok", report
    assert " serves tiny, 2048 tokens" in cli.ok("doctor", *flags)


def test_doctor_names_what_is_broken_and_how_to_fix_it(cli, tmp_path):
    env = {"BROS_REDIS_URL": "redis://:hunter2@127.0.0.1:9", "BROS_DATA_DIR": str(tmp_path / "open")}
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    there = Cli("http://127.0.0.1:9")
    there.env |= env
    done = there.run("doctor", "--model", "/no/model", "--json")
    assert done.returncode == 1
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    broken = {name for name, finding in findings.items() if finding["health"] == "broken"}
    assert broken == {"data directory", "model", "redis", "web"}
    assert findings["data directory"]["fix"] == f"chmod 700 {tmp_path / 'open'}"
    assert "hunter2" not in done.stdout + done.stderr
    assert done.stderr == "bros-batch: broken: data directory, model, redis, web.\n"
