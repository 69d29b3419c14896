"""The rows of a job over the API: pages, one row, streams, and rerun."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bros_batch.db import rows as rows_module
from bros_batch.documents.readers.open_table import open_table
from bros_batch.documents.readers.table_lines import table_lines
from bros_batch.web.app import create_app
from engine.wire.item_messages import Choice
from tests.bros_batch.web.serving import serving_app
from tests.bros_batch.world import World, batch_line

DOCUMENTS = [
    {"id": "a", "city": "Zürich", "n": 1.50},
    {"id": "b", "city": 'Say "hi"', "n": 2},
    {"id": "b", "city": "Łódź", "n": 3},
    {"id": "d", "city": "100% of_it", "nested": {"deep": ["Ωmega"]}},
]
ROW_FIELDS = [
    "row", "id", "status", "document", "answer", "error", "prompt_tokens", "output_tokens", "attempts", "queued_at",
    "finished_at",
]  # fmt: skip


@pytest.fixture
def http(world: World) -> Iterator[httpx.Client]:
    settings = world.settings.model_copy(update={"port": 0})
    with (
        serving_app(create_app(settings), settings) as web,
        httpx.Client(base_url=f"{web.url}/v1/batches/", timeout=30) as client,
    ):
        yield client


def finished(
    world: World, documents: list[dict[str, Any]] | bytes, answer: str = "An answer.", **job: Any
) -> str:
    job_id = world.running(documents, **job)
    world.prepare()
    world.engine.answer(world.engine.take(), answer)
    world.record()
    return job_id


def get(http: httpx.Client, path: str, **params: Any) -> Any:
    answer = http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def numbers(page: dict[str, Any]) -> list[int]:
    return [row["row"] for row in page["data"]]


def test_rows_and_one_row_show_document_answer_and_request(world: World, http: httpx.Client) -> None:
    defaults = {"prompt": "Where is {city}?", "system": "You know {id}.", "max_tokens": 5}
    job_id = finished(world, DOCUMENTS, defaults=defaults)
    page = get(http, f"{job_id}/rows")
    assert list(page) == ["object", "data", "has_more", "next_after"] and page["has_more"] is False
    assert [row["document"] for row in page["data"]] == DOCUMENTS
    first = page["data"][0]
    assert list(first) == ROW_FIELDS
    assert (first["row"], first["id"], first["status"], first["answer"]) == (
        1,
        "a",
        "succeeded",
        "An answer.",
    )
    assert first["attempts"] == 1 and first["error"] is None
    assert first["queued_at"] <= first["finished_at"] and first["prompt_tokens"] and first["output_tokens"]
    whole = get(http, f"{job_id}/rows/1")
    assert {name: whole[name] for name in ROW_FIELDS} == first
    assert whole["prompt"] == "Where is Zürich?"
    assert whole["request"] == {
        "max_tokens": 5,
        "model": "sim",
        "messages": [
            {"role": "system", "content": "You know a."},
            {"role": "user", "content": "Where is Zürich?"},
        ],
    }
    assert whole["response"]["choices"][0]["message"]["content"] == "An answer."
    for row in (0, 5, 2**40):
        assert http.get(f"{job_id}/rows/{row}").json()["error"]["code"] == "not_found"
    assert http.get("batch_0/rows").json()["error"]["param"] == "batch_id"


def test_answers_of_a_schema_are_parsed_and_batch_lines_have_a_text(world: World, http: httpx.Client) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    answer = '{"total": 12.50, "vendor": "A\\u00e9"}'
    job_id = finished(world, [{"text": "t"}], answer, defaults={"response_format": schema})
    assert get(http, f"{job_id}/rows")["data"][0]["answer"] == {"total": 12.5, "vendor": "Aé"}
    lines = [batch_line("x", "Who?", response_format=schema), batch_line("y", "Why?", n=2)]
    job_id = finished(world, lines, '{"a": 1}')
    first, second = get(http, f"{job_id}/rows")["data"]
    assert (first["document"], first["answer"]) == ({"custom_id": "x", "text": "Who?"}, {"a": 1})
    assert (second["document"], second["answer"]) == ({"custom_id": "y", "text": "Why?"}, ['{"a": 1}'] * 2)
    whole = get(http, f"{job_id}/rows/2")
    assert (whole["prompt"], whole["request"]) == (None, lines[1]["body"])


def test_a_document_that_cannot_be_read_keeps_its_path(
    world: World, http: httpx.Client, tmp_path: Path
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("Hello")
    (folder / "b.pdf").write_bytes(b"%PDF-1.7 broken")
    with open_table(folder) as table:
        lines = b"".join(table_lines(table))
    job_id = finished(world, lines, defaults={"prompt": "{text}"}, source={"id_field": "path"})
    good, bad = get(http, f"{job_id}/rows")["data"]
    assert good["document"] == {"path": "a.txt", "text": "Hello", "pages": None}
    assert (bad["status"], bad["id"], bad["document"]) == ("failed", "b.pdf", {"path": "b.pdf"})
    assert "b.pdf" in bad["error"]["message"]
    assert get(http, f"{job_id}/rows/2")["document"] == bad["document"]


def test_json_that_was_cut_is_no_answer(world: World, http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"total": {"type": ["number", "null"]}, "due": {"format": "date"}},
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    cut = [Choice(world.tokenizer.encode_prompt('{"total": 12.5, "ven'), "length")]
    job_id = world.running([{"text": "t"}], defaults={"response_format": form})
    world.prepare()
    world.engine.answer(world.engine.take(), choices=cut)
    world.record()
    row = get(http, f"{job_id}/rows")["data"][0]
    assert (row["status"], row["answer"], row["raw_answer"]) == ("failed", None, '{"total": 12.5, "ven')
    assert row["error"]["code"] == "output_truncated"
    assert get(http, f"{job_id}/rows", search="ven")["data"] == [row]
    assert get(http, f"{job_id}/rows/1")["raw_answer"] == row["raw_answer"]
    assert get(http, job_id)["answer_columns"] == {"total": "number", "due": None}
    # The lines of a batch file say for themselves what they ask for, and such an answer does not fail.
    lines = [
        batch_line("x", "Who?", response_format=form),
        batch_line("y", "Why?", n=2, response_format=form),
    ]
    job_id = finished(world, lines, '{"total')
    first, second = get(http, f"{job_id}/rows")["data"]
    assert (first["status"], first["answer"], first["raw_answer"]) == ("succeeded", None, '{"total')
    assert (second["answer"], second["raw_answer"]) == (None, ['{"total'] * 2)
    assert get(http, job_id)["answer_columns"] is None


def test_pages_in_both_directions_and_by_status(world: World, http: httpx.Client) -> None:
    lines = [json.dumps({"text": f"document {n}"}).encode() for n in range(1, 10)]
    job_id = world.running(b"\n".join([*lines[:4], b"nonsense", *lines[4:]]))
    world.prepare()
    world.engine.answer(world.engine.take(6))
    world.record()
    url = f"{job_id}/rows"
    first = get(http, url, limit=4)
    assert (numbers(first), first["has_more"], first["next_after"]) == ([1, 2, 3, 4], True, 4)
    rest = get(http, url, limit=6, after=4)
    assert (numbers(rest), rest["has_more"]) == ([5, 6, 7, 8, 9, 10], False)
    assert (rest["data"][0]["document"], rest["data"][0]["attempts"]) == (None, 0)
    assert rest["data"][0]["error"]["message"].startswith("Line 5")
    last = get(http, url, limit=3, order="desc")
    assert (numbers(last), last["next_after"]) == ([10, 9, 8], 8)
    assert numbers(get(http, url, after=3, order="desc")) == [2, 1]
    assert numbers(get(http, url, status="failed")) == [5]
    assert numbers(get(http, url, status="succeeded", after=2)) == [3, 4, 6, 7]
    assert numbers(get(http, url, status="queued")) == [8, 9, 10]
    assert numbers(get(http, url, only="ended")) == list(range(1, 8))
    assert http.get(url, params={"status": "asleep"}).json()["error"]["param"] == "status"
    assert http.get(url, params={"limit": 1001}).json()["error"]["param"] == "limit"
    world.cancel(job_id)
    world.finalize(job_id)
    assert numbers(get(http, url, status="failed")) == [5]
    assert numbers(get(http, url, status="cancelled")) == [8, 9, 10]
    assert numbers(get(http, url, status="cancelled", order="desc", limit=2)) == [10, 9]
    assert numbers(get(http, url, only="failed")) == [5, 8, 9, 10]


def test_search_finds_values_and_answers(world: World, http: httpx.Client) -> None:
    lines = b"\n".join(json.dumps(document).encode() for document in DOCUMENTS)
    job_id = finished(world, lines, "This is the Last.", defaults={"prompt": "{city}"})
    for search, found in {
        "ZÜRICH": [1],
        '"hi"': [2],
        "łódź": [3],
        "%": [4],
        "_": [4],
        "ωMEGA": [4],
        "1.5": [1],
        "city": [],  # the name of a column
        "completion": [],  # a word of the response that is not in the answer
        "B": [2, 3],
        "the last": [1, 2, 3, 4],
    }.items():
        assert numbers(get(http, f"{job_id}/rows", search=search)) == found, search
        assert numbers(get(http, f"{job_id}/rows", search=search, order="desc")) == found[::-1], search


def test_a_search_is_bounded_and_says_how_far_it_came(
    world: World, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.running([{"text": f"needle {n}" if n == 90 else "hay"} for n in range(1, 101)])
    monkeypatch.setattr(rows_module, "LOOK_S", 0.0)
    monkeypatch.setattr(rows_module, "LOOK_ROWS", 40)
    url = f"{job_id}/rows"
    page = get(http, url, search="needle")
    assert (page["data"], page["has_more"], page["next_after"]) == ([], True, 40)
    page = get(http, url, search="needle", after=80)
    assert (numbers(page), page["has_more"]) == ([90], False)
    streamed = http.get(url, params={"search": "needle"}, headers={"Accept": "application/x-ndjson"})
    assert [json.loads(line)["row"] for line in streamed.text.splitlines()] == [90]


def test_all_rows_are_streamed_as_they_are_in_the_list(
    world: World, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [{"text": f"Ω{n}", "big": 2**60 + n} for n in range(25)]
    job_id = finished(world, documents)
    monkeypatch.setattr(rows_module, "MAX_PAGE_BYTES", 8_000)
    page = get(http, f"{job_id}/rows")
    assert 0 < len(page["data"]) < 25 and page["has_more"], "a page of large rows has fewer of them"
    streamed = http.get(f"{job_id}/rows", headers={"Accept": "application/x-ndjson"})
    assert streamed.headers["content-type"].startswith("application/x-ndjson")
    rows = [json.loads(line) for line in streamed.text.splitlines()]
    assert [row["document"] for row in rows] == documents
    assert rows[: len(page["data"])] == page["data"]


def test_rerun_over_the_api(world: World, http: httpx.Client) -> None:
    job_id = finished(world, [{"text": "a"}, {"text": "b"}])
    world.finalize(job_id)
    ended = get(http, job_id)
    output = world.settings.files_dir / ended["output_file_id"]
    assert output.exists()

    def post(**body: Any) -> tuple[int, Any]:
        answer = http.post(f"{job_id}/rerun", json=body)
        return answer.status_code, answer.json()

    for body in ({}, {"rows": [1], "only": "failed"}, {"rows": []}, {"rows": [0]}, {"rows": [3]}):
        status, answer = post(**body)
        assert (status, answer["error"]["param"].split("[")[0]) == (400, "rows"), answer
    assert post(only="failed")[0] == 409
    assert get(http, job_id) == ended and output.exists()
    status, batch = post(rows=[2])
    assert (status, batch["status"], batch["request_counts"]["completed"]) == (200, "in_progress", 1)
    assert not output.exists(), "its results are no longer those of the job"
    assert world.run_through(job_id).succeeded == 2
    assert http.post("batch_0/rerun", json={"only": "failed"}).status_code == 404
