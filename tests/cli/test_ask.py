"""`bros-batch ask`: its questions, its files, and a whole run on the simulated engine."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from bros_batch.documents.readers.open_table import open_table
from bros_batch.documents.readers.table import Row
from cli.failure import Failure
from cli.jobs.questions import choice, predicate, score
from cli.jobs.rows import written_rows
from tests.cli.test_jobs import Cli
from tests.up_process import Up


def ask(service: Up, *arguments: str) -> subprocess.CompletedProcess[str]:
    return Cli(service.state()["url"]).run("ask", *arguments)


def test_questions_are_read_from_options() -> None:
    assert predicate("urgent: Is this urgent?").body == {
        "type": "predicate",
        "name": "urgent",
        "instructions": "Is this urgent?",
    }
    plain, asked = choice("team: billing|sales"), choice("team: Who? Or what? billing | sales")
    assert (plain.body["instructions"], asked.body["instructions"]) == ("team", "Who? Or what?")
    assert plain.body["choices"] == asked.body["choices"] == [{"value": "billing"}, {"value": "sales"}]
    rating = score("quality: 3-5 How good is it?")
    assert [level["label"] for level in rating.body["levels"]] == ["3", "4", "5"]
    assert rating.body["instructions"] == "How good is it?"


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (predicate, "Is this urgent?"),
        (predicate, "urgent:"),
        (choice, "team: billing"),
        (choice, "team: a|a"),
        (choice, "team: a||b"),
        (score, "quality: good"),
        (score, "quality: 5-1"),
        (score, "quality: 0-900000"),
    ],
)
def test_options_that_are_no_questions(read: Any, text: str) -> None:
    with pytest.raises(Failure, match="such as"):
        read(text)


def test_answers_become_columns() -> None:
    answer = {"type": "predicate", "probability": 0.25}
    assert predicate("u: Is it?").values(answer) == {
        "u": False,
        "u_probability": 0.75,
        "u_probabilities": {"true": 0.25, "false": 0.75},
    }
    levels = [{"label": "3", "value": 0, "probability": 0.1}, {"label": "4", "value": 1, "probability": 0.9}]
    found = score("q: 3-4 ?").values({"type": "score", "score": 0.9, "probabilities": levels})
    assert (found["q"], found["q_probability"]) == (3.9, 0.9)


def test_rows_are_written_as_they_are_read(tmp_path: Path) -> None:
    rows = [{"id": "1", "text": 'two\nlines, "quoted"', "ok": True}, {"id": "2", "text": "käse", "ok": True}]
    for suffix in ("csv", "tsv", "jsonl"):
        written = tmp_path / f"out.{suffix}"
        written.write_bytes(b"".join(written_rows(str(written), rows, ["id", "text", "ok"])))
        with open_table(written) as table:
            again = [row.document for row in table if isinstance(row, Row)]
        assert [row["text"] for row in again] == ['two\nlines, "quoted"', "käse"]
        assert [row["ok"] for row in again] == ([True] * 2 if suffix == "jsonl" else ["true"] * 2)


def test_every_row_is_answered(service: Up, tmp_path: Path) -> None:
    source, output = tmp_path / "mails.csv", tmp_path / "answers.csv"
    with source.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "mail"])
        writer.writerows([7, f"Mail number {number}"] for number in range(50))
    done = ask(
        service, str(source), "--prompt", "{mail}", "--question", "urgent: Is this urgent?",
        "--choice", "team: billing|sales", "--score", "quality: 1-5 How good is it?", "-o", str(output),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["mail"] for row in rows] == [f"Mail number {number}" for number in range(50)]
    for row in rows:
        assert row["id"] == "7"
        assert row["urgent"] in ("true", "false")
        assert row["team"] in ("billing", "sales")
        assert 1 <= float(row["quality"]) <= 5
        assert 0.5 <= float(row["urgent_probability"]) <= 1
        assert set(json.loads(row["team_probabilities"])) == {"billing", "sales"}


def test_rows_without_answers_are_named(service: Up, tmp_path: Path) -> None:
    source, output = tmp_path / "docs.jsonl", tmp_path / "answers.jsonl"
    source.write_text('{"text": "a"}\n{"other": "b"}\nnot json\n{"text": "c"}\n')
    done = ask(service, str(source), "--question", "ok: Is it?", "-o", str(output))
    assert done.returncode == 1
    assert "Row 2" in done.stderr
    assert "Row 3" in done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["ok"] is None for row in rows] == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--question", "text: Is it?"), "two columns named 'text'"),
        ((), "at least one question"),
        (("--question", "ok: Is it?", "--prompt", "{body}"), "body"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(tmp_path: Path, arguments: Any, said: str) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text('{"text": "a"}\n')
    done = Cli("http://127.0.0.1:9").run("ask", str(source), *arguments, "-o", str(tmp_path / "out.csv"))
    assert done.returncode == 2
    assert said in done.stderr


def test_a_sheet_of_a_workbook_is_asked_about(service: Up, tmp_path: Path) -> None:
    import xlsxwriter

    source, output = tmp_path / "book.xlsx", tmp_path / "out.jsonl"
    with xlsxwriter.Workbook(source) as book:
        for name in ("Cover", "My mails", "Old mails"):
            column = "about" if name == "Cover" else "mail"
            book.add_worksheet(name).write_column(0, 0, [column, f"from {name}"])
    question = ("--prompt", "{mail}", "--question", "ok: Is it?", "-o", str(output))
    for chosen, read in ((), "My mails"), (("--sheet", "Old mails"), "Old mails"):
        done = ask(service, str(source), *question, *chosen)
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["mail"] for line in output.read_text().splitlines()] == [f"from {read}"]
        assert ("The sheet 'My mails' is read; the others are: Cover, Old mails.\n" in done.stderr) == (
            not chosen
        )
        assert ("To read another sheet, add --sheet Cover\n" in done.stderr) == (not chosen)


def test_a_webhook_that_may_not_be_called_is_refused_before_the_upload(service: Up, tmp_path: Path) -> None:
    source = tmp_path / "docs.csv"
    source.write_text("text\na\n")
    cli = Cli(service.state()["url"])
    refused = ("--notify", "http://127.0.0.1:9/hook")
    with httpx.Client(base_url=service.state()["url"]) as http:

        def files() -> Any:
            return [each["id"] for each in http.get("/v1/files").json()["data"]]

        before = files()
        for command in (
            ["ask", str(source), "--question", "ok: Is it?", "-o", str(tmp_path / "out.csv"), *refused],
            ["submit", str(source), "--prompt", "{text}", *refused],
        ):
            done = cli.run(*command)
            assert done.returncode == 1
            assert "which webhooks may not call" in done.stderr
        assert files() == before
