"""A person downloads the rows of a job as a table in each format, with the columns of the input and of the answers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet
import pytest
from python_calamine import CalamineWorkbook

from bros_batch.web.app import create_app
from engine.wire.item_messages import Choice
from tests.bros_batch.web.serving import serving_app
from tests.bros_batch.world import World

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number"}, "due": {"type": "string", "format": "date"}},
}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
NAMES = ["id", "text", "total", "due", "_raw_answer", "_error"]


@pytest.fixture
def http(world: World) -> Iterator[httpx.Client]:
    settings = world.settings.model_copy(update={"port": 0})
    with (
        serving_app(create_app(settings), settings) as web,
        httpx.Client(base_url=web.url, timeout=60) as client,
    ):
        yield client


def answered(world: World) -> str:
    """A job of three rows: one has an answer, one was cut, and one is not computed yet."""
    rows: list[Any] = [{"id": number, "text": f"t{number}"} for number in (1, 2, 3)]
    source = {"name": "März.csv", "columns": ["id", "text"], "types": {"id": "integer"}}
    job_id = world.running(rows, defaults={"response_format": FORM}, source=source)
    world.prepare()
    first, second, _ = world.engine.take()
    world.engine.answer([first], '{"total": 2, "due": "2024-02-29"}')
    world.engine.answer([second], choices=[Choice(world.tokenizer.encode_prompt('{"total": 3.'), "length")])
    world.record()
    return job_id


def test_the_rows_so_far_in_every_format(world: World, http: httpx.Client, tmp_path: Path) -> None:
    job_id = answered(world)
    page = http.get(f"/jobs/{job_id}", headers={"Accept": "text/html"}).text
    assert "<dt>Input</dt><dd>März.csv</dd>" in page, (
        "the table that the user knows, not the lines made of it"
    )
    found = {}
    for kind in ("csv", "xlsx", "parquet"):
        url = f"/jobs/{job_id}/table/{kind}"
        assert f'href="{url}" download="März-answers.{kind}"' in page
        response = http.get(url)
        assert response.status_code == 200, response.text
        assert "attachment" in response.headers["content-disposition"]
        found[kind] = response.content
    header, first, second = csv.reader(io.StringIO(found["csv"].decode("utf-8-sig"), newline=""))
    assert header == NAMES
    assert first == ["1", "t1", "2", "2024-02-29", "", ""]
    assert second[:5] == ["2", "t2", "", "", '{"total": 3.'] and second[5]
    table = pyarrow.parquet.read_table(io.BytesIO(found["parquet"]))
    assert [str(kind) for kind in table.schema.types[:4]] == ["int64", "string", "double", "date32[day]"]
    book = CalamineWorkbook.from_filelike(io.BytesIO(found["xlsx"]))
    sheet = book.get_sheet_by_name("März").to_python()
    assert sheet[0] == NAMES and len(sheet) == 3
    assert list(world.settings.files_dir.glob("*.upload")) == [], "what was written is removed"


def test_what_is_not_there_is_said(world: World, http: httpx.Client) -> None:
    job_id = answered(world)
    for path in (f"/jobs/{job_id}/table/ods", "/jobs/batch_0/table/csv"):
        response = http.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found"), json.dumps(
            path
        )
