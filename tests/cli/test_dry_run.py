"""`submit --dry-run` shows what a job would be, and submits nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.jobs.dry_run import MAX_LINE_BYTES, MAX_SAMPLED_BYTES, SAMPLE_BYTES, SAMPLE_LINES, Sampler, _whole
from tests.cli.test_jobs import Cli
from tests.up_process import Up


@pytest.fixture(scope="module")
def cli(service: Up) -> Cli:
    return Cli(service.state()["url"])


def test_a_dry_run_shows_the_job_and_creates_none(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    documents = [json.dumps({"text": f"text {number}"}) for number in range(20)]
    path.write_text("\n".join([*documents, '{"text": "cut', *documents]) + "\n")
    arguments = ("submit", str(path), "--prompt", "Say {text}", "--max-tokens", "4")
    ran = cli.run(*arguments, "--wait", "--json")
    done = json.loads(ran.stdout)
    before = cli.json("list")
    shown = cli.run(*arguments, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[1].split(":") == ["rows", "     41"]
    assert lines[2].split() == ["rejected:", "1"]
    assert "Line 21" in lines[3]
    assert f"{done['usage']['input_tokens']:,} in, about" in lines[4]
    assert lines[5].startswith("time:     about ")
    greedy = (*arguments, "--temperature", "0", "--dry-run")
    assert cli.json(*greedy, "--json")["reused_rows"] == 20
    assert "reused:   about 20 rows" in cli.run(*greedy).stdout
    assert cli.json(*greedy, "--fresh", "--json")["reused_rows"] == 0
    assert lines[-3:] == ["The prompt of row 1:", "", "Say text 0"]
    assert "Nothing was submitted." in shown.stderr
    assert cli.json("list") == before
    assert cli.json(*arguments, "--dry-run", "--json")["forecast"]["p50"] > 0


def test_a_dry_run_of_rejected_rows_says_that_nothing_would_be_computed(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps({"text": "too long " * 5000}) + "\n") * 3)
    shown = cli.run("submit", str(path), "--prompt", "Say {text}", "--dry-run")
    assert "time:     none: every row is rejected, so nothing would be computed" in shown.stdout
    assert "--first" not in shown.stdout and "chats:" not in shown.stdout


def test_a_sample_is_bounded_and_has_the_first_line() -> None:
    sampler = Sampler()
    for number in range(1, 20_001):
        sampler.add(number, b"{}" if number % 100 else b"x" * (MAX_SAMPLED_BYTES // 2))
    found = sampler.sample()
    assert sampler.rows == 20_000
    assert found[0]["row"] == 1
    assert 10 < len(found) <= SAMPLE_LINES
    assert sum(len(each["line"]) for each in found) <= SAMPLE_BYTES
    rows = [each["row"] for each in found[1:]]
    assert rows != sorted(rows)


def test_few_lines_are_all_in_the_sample_except_those_without_end() -> None:
    sampler = Sampler()
    pieces = [b"\xef\xbb\xbf{}\n", *[b"x" * MAX_LINE_BYTES] * 3, b"\n", b"\xff\n", b"{}"]
    for number, line in enumerate(_whole(pieces), start=1):
        sampler.add(number, line)
    found = {each["row"]: each["line"] for each in sampler.sample()}
    assert (sampler.rows, sorted(found)) == (4, [1, 3, 4])
    assert found[1] == found[4] == "{}"
    assert found[3] == '{"_error": "Row 3: this is not valid UTF-8."}'
