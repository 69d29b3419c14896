"""`export` and `import` as commands, against a running server."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.cli.test_jobs import Cli, documents
from tests.up_process import Up


@pytest.fixture(scope="module")
def cli(service: Up) -> Cli:
    return Cli(service.state()["url"])


def test_a_job_is_exported_and_imported_as_a_second_job(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text(documents(5))
    job = cli.json("submit", str(source), "--prompt", "Sum up: {text}", "--max-tokens", "4", "--wait")
    path = tmp_path / "job.zip"
    done = cli.run("export", job["id"], "-o", str(path))
    assert done.returncode == 0 and "with 5 rows" in done.stderr
    copy = cli.json("import", str(path))
    assert copy["id"] != job["id"]
    own = {"id", "input_file_id", "output_file_id", "error_file_id"}
    assert {**copy, **dict.fromkeys(own)} == {**cli.json("status", job["id"]), **dict.fromkeys(own)}
    assert cli.lines("results", copy["id"]) == cli.lines("results", job["id"])


def test_a_damaged_file_is_refused_in_one_sentence(cli: Cli, tmp_path: Path) -> None:
    before = cli.lines("list", "--json")
    path = tmp_path / "job.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("job.json", json.dumps({"format": "bros-batch job", "version": 9}))
        archive.writestr("rows.jsonl", "")
    for reason in ("version 9", "not a zip file"):
        done = cli.run("import", str(path))
        assert (done.returncode, done.stdout) == (2, "")
        assert reason in done.stderr and done.stderr.count("\n") == 1
        path.write_bytes(b"PK")
    assert cli.lines("list", "--json") == before
