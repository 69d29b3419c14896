"""Tables of all kinds, from the file of a user to the documents of a job."""

from __future__ import annotations

import gzip
import json
import os
import pty
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.bros_batch.documents.readers.factories import ROWS, as_csv, as_parquet, as_xlsx, write_documents
from tests.cli.test_jobs import Cli
from tests.up_process import Up

SHORT = ("--max-tokens", "4")


@pytest.fixture(scope="module")
def cli(service: Up) -> Cli:
    return Cli(service.state()["url"])


def rows_of(cli: Cli, job: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{cli.env['BROS_URL']}/v1/batches/{job}/rows")
    rows: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
    return rows


@pytest.mark.parametrize(
    ("name", "data"), [("t.csv", as_csv(";")), ("t.xlsx", as_xlsx()), ("t.parquet", as_parquet())]
)
def test_a_table_becomes_a_job_that_knows_its_columns(
    cli: Cli, tmp_path: Path, name: str, data: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    batch = cli.json("submit", str(path), "--prompt", "{text} {total}", *SHORT, "--wait")
    types = {
        "t.csv": {},
        "t.xlsx": {"types": {"due": "date"}},
        "t.parquet": {
            "types": dict(zip(ROWS[0], ["integer", "text", "number", "boolean", "date"], strict=True))
        },
    }
    source = {"name": name, "format": name[2:], "columns": list(ROWS[0]), **types[name]}
    assert batch["source"] == source
    rows = rows_of(cli, batch["id"])
    assert [(row["row"], row["id"], row["status"]) for row in rows] == [
        (n, str(n), "succeeded") for n in (1, 2, 3)
    ]
    assert [row["document"]["text"] for row in rows] == [row["text"] for row in ROWS]


def test_a_folder_and_a_list_of_documents(cli: Cli, tmp_path: Path) -> None:
    write_documents(tmp_path)
    done = cli.run("submit", str(tmp_path), "--prompt", "{text}", *SHORT, "--wait", "--json")
    assert done.returncode == 1, done.stderr  # two documents have no text
    batch = json.loads(done.stdout)
    assert batch["name"] == tmp_path.name
    rows = rows_of(cli, batch["id"])
    names = ["a.txt", "b.md", "c.html", "sub/broken.pdf", "sub/d.pdf", "sub/e.docx", "sub/scan.pdf"]
    assert [row["id"] for row in rows] == names
    assert [row["document"]["path"] for row in rows] == names, "also of those that cannot be read"
    assert rows[3]["error"]["message"] == "Row 4, sub/broken.pdf: the PDF is damaged; open and save it again."
    assert "Row 4, sub/broken.pdf: the PDF is damaged; open and save it again. It will count" in done.stderr
    listed = [str(tmp_path / "a.txt"), str(tmp_path / "b.md")]
    batch = cli.json("submit", *listed, "--prompt", "{text}", *SHORT, "--wait")
    assert (batch["name"], batch["request_counts"]["completed"]) == ("a.txt and 1 more", 2)


def test_a_table_on_stdin_with_ids_that_repeat(cli: Cli) -> None:
    table = "key,text\nk1,a\nk1,b\n,c\n"
    batch = cli.json("submit", "-", "--prompt", "{text}", "--id-field", "key", *SHORT, "--wait", stdin=table)
    assert (batch["name"], batch["source"]["id_field"]) == ("stdin", "key")
    assert [(row["row"], row["id"]) for row in rows_of(cli, batch["id"])] == [(1, "k1"), (2, "k1"), (3, "3")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--prompt", "{Text}"],
            "uses the field 'Text', which the document does not have. Did you mean 'text'?",
        ),
        (["--prompt", "{text}", "--id-field", "ids"], "The --id-field uses the field 'ids'"),
        (["--prompt", "{text}", "--sheet", "One"], "is not a workbook, so it has no sheet 'One'"),
        ([], "The columns of row 1: id, text, total, paid, due. For example:\n\n    bros-batch submit "),
        ([], "--prompt 'Summarize: {text}' -o t-answers.xlsx\n"),
        (["--prompt", "{text}", "--column", "a: one of b"], "needs at least two options"),
        (["--prompt", "{text}", "--column", "a", "--schema", "x.json"], "Use either --schema or --column."),
    ],
)
def test_a_mistake_is_known_before_the_upload(
    cli: Cli, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(as_csv())
    done = cli.run("submit", str(path), *arguments, "--url", "http://127.0.0.1:1")
    assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr


def test_the_sheet_with_the_columns_of_the_prompt_is_read(cli: Cli, tmp_path: Path) -> None:
    import xlsxwriter

    path = tmp_path / "messy.xlsx"
    with xlsxwriter.Workbook(path) as book:
        book.add_worksheet("Cover").write_column(0, 0, ["about", "invoices"])
        book.add_worksheet("The invoices").write_column(0, 0, ["Text", "from ACME"])
    unread = cli.run("submit", str(path), "--url", "http://127.0.0.1:1")
    assert "To read another sheet, add --sheet 'The invoices'\n" in unread.stderr
    done = cli.run("submit", str(path), "--prompt", "{Text}", "--dry-run")
    assert (done.returncode, "from ACME" in done.stdout) == (0, True), done.stderr
    assert "messy.xlsx: The sheet 'The invoices' is read; the others are: Cover." in done.stderr


def test_columns_are_a_schema_and_an_instruction(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(as_csv())
    columns = ["--column", "kind: one of invoice|letter", "--column", "total: number?, with tax"]
    # The answers of the simulated model may be cut; what is looked at is what was asked.
    batch = json.loads(
        cli.run("submit", str(path), "--prompt", "{text}", *columns, "--wait", "--json").stdout
    )
    row = httpx.get(f"{cli.env['BROS_URL']}/v1/batches/{batch['id']}/rows/1").json()
    assert row["prompt"].endswith(
        "Answer with a JSON object that has these keys:\n- kind (one of: invoice, letter)\n"
        "- total (number, or null if there is none): with tax"
    )
    assert list(row["request"]["response_format"]["json_schema"]["schema"]["properties"]) == ["kind", "total"]


def test_the_first_rows_are_shown_before_all_are_computed(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(as_csv())
    command = ["submit", str(path), "--prompt", "{text}", *SHORT, "--first", "2"]
    done = cli.run(*command)
    assert (done.returncode, "add --yes to compute all rows" in done.stderr) == (1, True), done.stderr
    done = cli.run(*command, "--yes", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["request_counts"]["completed"] == 3
    for part in ("Grüße, Dear Sirs", "tokens", "seconds", "2 rows, "):
        assert part in done.stderr
    batch = json.loads(cli.run(*command[:-1], "3", "--json").stdout)  # the table has no others
    assert batch["name"] == "t.csv (first rows)"


@pytest.mark.parametrize(("answer", "num_jobs"), [("y", 2), ("n", 1)])
def test_a_terminal_is_asked(cli: Cli, tmp_path: Path, answer: str, num_jobs: int) -> None:
    path = tmp_path / "asked.csv"
    path.write_bytes(as_csv())
    main, side = pty.openpty()
    name = f"asked {answer}"
    command = ["submit", str(path), "--prompt", "{text}", *SHORT, "--first", "1", "--name", name]
    os.write(main, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "cli", *command],
        stdin=side,
        capture_output=True,
        text=True,
        env=cli.env,
        timeout=120,
    )
    os.close(main)
    os.close(side)
    assert (done.returncode, "Compute all rows? [y/N]" in done.stderr) == (0, True), done.stderr
    found = httpx.get(f"{cli.env['BROS_URL']}/v1/batches", params={"search": name}).json()["data"]
    assert len(found) == num_jobs


def test_a_service_on_another_data_directory_is_named(service: Up) -> None:
    cli = Cli("http://127.0.0.1:9")
    cli.env["XDG_STATE_HOME"] = str(service.data_dir.parent / "state")
    done = cli.run("list")
    url, data_dir = service.state()["url"], service.data_dir.resolve()
    assert done.returncode == 3
    assert f"It runs at {url} (data directory {data_dir}): export BROS_URL={url}" in done.stderr
    cli.env["XDG_STATE_HOME"] = str(service.data_dir)  # where nothing was noted
    assert "Start it with `bros-batch up`" in cli.run("list").stderr


def test_a_shell_completes_commands(cli: Cli) -> None:
    script = cli.ok("completion", "bash")
    assert "_BROS_BATCH_COMPLETE=bash_complete" in script
    env = {
        **cli.env,
        "_BROS_BATCH_COMPLETE": "bash_complete",
        "COMP_WORDS": "bros-batch sub",
        "COMP_CWORD": "1",
    }
    program = "from cli.main import main; main(prog_name='bros-batch')"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.stdout == "plain,submit\n"


def test_a_file_that_turns_out_to_be_damaged_makes_no_job(cli: Cli, tmp_path: Path) -> None:
    numbers = random.Random(3)
    rows = "".join(f"{number},{numbers.random()}\n" for number in range(60_000))
    path = tmp_path / "damaged.csv.gz"
    path.write_bytes(gzip.compress(f"id,text\n{rows}".encode())[:-100_000])
    done = cli.run("submit", str(path), "--prompt", "{text}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "damaged.csv.gz is damaged: its gzip data cannot be unpacked" in done.stderr
    found = httpx.get(f"{cli.env['BROS_URL']}/v1/batches", params={"search": "damaged.csv"}).json()["data"]
    assert found == []
