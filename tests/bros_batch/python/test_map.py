"""Tables of all kinds through a server: in, and out with more columns."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import polars
import pyarrow
import pytest

import bros_batch
from bros_batch.client.http_client import Client as HttpClient
from tests.bros_batch.documents.readers.factories import write_documents
from tests.services import wait_for
from tests.up_process import Up, running_up

SHORT: Any = {"max_tokens": 4, "temperature": 0}
DAY = datetime.date(2026, 3, 4)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    queue = {"BROS_QUEUE_MAX_ITEMS": "50", "BROS_PUMP_INTERVAL_S": "0.2"}
    data_dir = tmp_path_factory.mktemp("python") / "data"
    with running_up(data_dir, engine=("--runner", "simulated", "--simulated-step-s", "0.01"), **queue) as up:
        yield up


@pytest.fixture(scope="module")
def client(up: Up) -> Iterator[bros_batch.Client]:
    with bros_batch.Client(up.state()["url"]) as client:
        yield client


def texts(client: bros_batch.Client, prompts: list[str]) -> list[str]:
    """The answers to these prompts, which are what any other table with these prompts must get."""
    found = client.map(prompts, "{text}", **SHORT)
    assert all(isinstance(answer, str) and answer for answer in found)
    return found


def test_texts_give_their_answers_in_order(client: bros_batch.Client) -> None:
    prompts = [f"Say {number}" for number in range(20)]
    answers = texts(client, prompts)
    assert len(set(answers)) > 10
    assert texts(client, prompts[::-1]) == answers[::-1]


def test_dicts_get_a_key(client: bros_batch.Client) -> None:
    rows = ({"id": "same", "n": number, "answer": "mine"} for number in (1, 2))
    one, two = texts(client, ["1 same", "2 same"])
    assert client.map(rows, "{n} {id}", **SHORT) == [
        {"id": "same", "n": 1, "answer": "mine", "answer_answer": one},
        {"id": "same", "n": 2, "answer": "mine", "answer_answer": two},
    ]


def test_a_data_frame_of_pandas_keeps_its_index_and_types(client: bros_batch.Client) -> None:
    frame = pandas.DataFrame(
        {
            "id": [7, 7],
            "when": pandas.to_datetime(["2026-03-04", None]),
            "n": pandas.array([1, None], dtype="Int64"),
            "kind": pandas.Categorical(["a", "b"]),
        },
        index=pandas.Index(["x", "x"], name="key"),
    )
    found = client.map(frame, "{when} {n} {kind}", **SHORT)
    pandas.testing.assert_frame_equal(found[list(frame.columns)], frame)
    assert list(found.columns) == [*frame.columns, "answer"]
    assert found["answer"].tolist() == texts(client, ["2026-03-04T00:00:00 1 a", "  b"])


def test_a_data_frame_of_polars_and_a_table_of_pyarrow(client: bros_batch.Client) -> None:
    columns = {"day": [DAY, None], "n": [1.5, 2.0]}
    wanted = texts(client, ["2026-03-04 1.5", " 2.0"])
    frame = client.map(polars.DataFrame(columns), "{day} {n}", **SHORT)
    assert frame.to_dict(as_series=False) == {**columns, "answer": wanted}
    assert frame.schema["day"] == polars.Date
    table = client.map(pyarrow.table(columns), "{day} {n}", **SHORT)
    assert table.to_pydict() == {**columns, "answer": wanted}
    assert table.schema.field("day").type == pyarrow.date32()


def test_a_file_gives_dicts_or_a_file(client: bros_batch.Client, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("n,text\n007,a\n008,b\n")
    wanted = [
        {"n": n, "text": text, "answer": answer}
        for (n, text), answer in zip([("007", "a"), ("008", "b")], texts(client, ["a", "b"]), strict=True)
    ]
    assert client.map(path, "{text}", **SHORT) == wanted
    output = client.map(path, "{text}", output=tmp_path / "out.jsonl", **SHORT)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert written == [{**row, "_error": None} for row in wanted]
    assert client.job("last").result() == wanted


def test_rows_that_fail_say_why(client: bros_batch.Client) -> None:
    rows = [{"text": "a"}, {"other": "b"}]
    with pytest.warns(
        bros_batch.RowsFailed, match="1 of 2 rows .* the first is row 2: .*uses the field 'text'"
    ):
        found = client.map(rows, "{text}", **SHORT)
    assert found[0] == {"text": "a", "answer": texts(client, ["a"])[0], "_error": None}
    assert found[1]["answer"] is None and "'text'" in found[1]["_error"]
    with pytest.warns(bros_batch.RowsFailed):
        assert client.map(["ok", "a" * 100_000], "{text}", **SHORT)[1] is None


def test_warnings_name_the_line_of_the_caller(client: bros_batch.Client, tmp_path: Path) -> None:
    write_documents(tmp_path)
    questions: Any = {"urgent": "Is it?"}
    with pytest.warns(UserWarning) as found:
        client.map(str(tmp_path), "{text}", **SHORT)
        client.ask(str(tmp_path), questions)
    kinds = [each.category for each in found]
    assert kinds == 2 * [UserWarning, bros_batch.RowsFailed], [str(each.message) for each in found]
    assert {each.filename for each in found} == {__file__}


def test_questions_become_a_value_and_a_probability(client: bros_batch.Client) -> None:
    questions = {"urgent": "Is it?", "team": ("Which?", ["billing", "access"]), "mood": range(1, 4)}
    frame = client.ask(polars.DataFrame({"text": ["a", "b"]}), questions)
    assert frame.columns[1:] == [part for name in questions for part in (name, f"{name}_probability")]
    for row in frame.iter_rows(named=True):
        assert type(row["urgent"]) is bool and row["team"] in ("billing", "access") and 1 <= row["mood"] <= 3
        assert all(0 < row[f"{name}_probability"] <= 1 for name in questions)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((["a"], "no place"), "The prompt contains no {field}"),
        (([{}], "{text}"), "does not have"),
        ((["a", {"text": "b"}], "{text}"), "Row 2 is a dict, and row 1 is a text."),
        ((3, "{text}"), "not int"),
        (("missing.csv", "{text}"), "missing.csv"),
        ((pandas.DataFrame([[1, 2]], columns=["a", "a"]), "{a}"), "two columns named 'a'"),
        ((polars.DataFrame({"text": ["a"]}).lazy(), "{text}"), "pass frame.collect()"),
    ],
)
def test_bad_input_is_known_before_anything_is_sent(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises((ValueError, OSError)) as raised:
        bros_batch.Client("http://127.0.0.1:9").submit(*arguments)
    assert sentence in str(raised.value)


def test_options_that_do_not_exist_or_not_together() -> None:
    client: Any = bros_batch.Client("http://127.0.0.1:9")
    with pytest.raises(TypeError, match=r"'temprature'\. Did you mean 'temperature'"):
        client.map(["a"], "{text}", temprature=0)
    with pytest.raises(bros_batch.BadInput, match="Use only one of schema and columns"):
        client.map(["a"], "{text}", schema={}, columns={"a": "text"})
    with pytest.raises(bros_batch.BadInput, match=r"must end in one of \.csv"):
        client.map(["a"], "{text}", output="out.doc")


def test_without_a_server_the_error_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROS_URL", "http://127.0.0.1:9")
    with pytest.raises(bros_batch.ServiceUnreachable, match="`bros-batch up`") as raised:
        bros_batch.map(["a"], "{text}")
    assert raised.value.__suppress_context__


def test_the_server_of_the_data_directory_is_found(
    up: Up, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BROS_URL", raising=False)
    monkeypatch.setenv("BROS_DATA_DIR", str(up.data_dir))
    assert bros_batch.Client().url == up.state()["url"]
    assert len(bros_batch.map(["a", "b"], "{text}", **SHORT)) == 2


async def test_several_tables_at_once(client: bros_batch.Client) -> None:
    both = await asyncio.gather(*(client.map_async([text], "{text}", **SHORT) for text in ("a", "b")))
    assert [answer for (answer,) in both] == await asyncio.to_thread(texts, client, ["a", "b"])


LONG = """
import sys, bros_batch
print("ready", flush=True)
bros_batch.map((f"row {n}" for n in range(300)), "Write about {text}", max_tokens=200, temperature=0, name=sys.argv[1])
"""


def started_map(up: Up, name: str) -> tuple[subprocess.Popen[str], str]:
    """A process that maps a table, and the id of its job, of which some rows are done."""
    environment = {**os.environ, "BROS_URL": up.state()["url"]}
    process = subprocess.Popen(
        [sys.executable, "-c", LONG, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with HttpClient(up.state()["url"]) as http:
        found: list[Any] = []

        def has_begun() -> bool:
            found[:] = http.batches(1, search=name)
            return bool(found) and found[0]["item_counts"]["succeeded"] > 0

        wait_for(has_begun)
        return process, found[0]["id"]


def test_ctrl_c_leaves_the_job_and_says_how_to_get_its_result(client: bros_batch.Client, up: Up) -> None:
    process, job_id = started_map(up, "interrupted")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    (line,) = [line.strip() for line in stderr.splitlines() if ".result()" in line]
    assert line == f'bros_batch.Client("{client.url}").job("{job_id}").result()'
    job = client.job(job_id)
    assert job.status == "in_progress"
    assert len(list(job.rows())) > 0
    assert "cancel" in job.cancel().status


def test_a_killed_map_that_is_run_again_takes_the_answers_that_exist(
    client: bros_batch.Client, up: Up
) -> None:
    process, job_id = started_map(up, "killed")
    process.kill()
    process.communicate()
    first = client.job(job_id).wait(progress=False)
    rows = [f"row {n}" for n in range(300)]
    again = client.submit(rows, "Write about {text}", max_tokens=200, temperature=0)
    answers = again.result(progress=False)
    assert answers == [row["answer"] for row in first.rows()]
    assert again.batch["usage"]["total_tokens"] == 0
