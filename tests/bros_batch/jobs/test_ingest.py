"""Ingest: which lines are good, the error messages of the others, and how it continues after a death."""

from __future__ import annotations

import itertools
import json
import random
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bros_batch.db import files, job_leases, new_items
from bros_batch.db.connections import writing
from bros_batch.db.job_leases import LeaseLost
from bros_batch.db.states import JobStatus
from bros_batch.jobs.task_run import Progress
from tests.bros_batch.world import CHAT, World, batch_line, batch_lines

GOOD = json.dumps(batch_line("good")).encode()


_numbers = itertools.count()


def line(**changes: Any) -> bytes:
    """A batch line with changed fields; None removes a field."""
    fields = {**batch_line(f"bad-{next(_numbers)}"), **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


BODY = batch_line("bad")["body"]

BAD_LINES = {
    "raw NUL": (GOOD.replace(b'"good"', b'"go\0od"'), "not valid JSON", None),
    "only NUL": (b"\0", "not valid JSON", None),
    "invalid UTF-8": (line(custom_id="odd").replace(b"Hello", b"H\xffllo"), "not valid UTF-8", None),
    "invalid UTF-8 in the id": (GOOD.replace(b'"good"', b'"go\xffod"'), "not valid UTF-8", None),
    "half a surrogate": (GOOD.replace(b'"good"', b'"\\ud800"'), "not valid JSON", None),
    "not JSON": (b"hello", "not valid JSON", None),
    "cut off": (GOOD[:-5], "not valid JSON", None),
    "two values": (GOOD + b" {}", "not valid JSON", None),
    "NaN": (GOOD.replace(b'"Hello"', b"NaN"), "not valid JSON", None),
    "an array": (b"[1, 2]", "not a JSON object", None),
    "a string": (b'"text"', "not a JSON object", None),
    "null": (b"null", "not a JSON object", None),
    "deeply nested": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply", None),
    "too long": (line(custom_id="x" * 600_000), "longer than the 500000 bytes", None),
    "no custom_id": (line(custom_id=None), "'custom_id' is missing", "custom_id"),
    "number as custom_id": (line(custom_id=5), "'custom_id' must be a string", "custom_id"),
    "null as custom_id": (GOOD.replace(b'"good"', b"null"), "'custom_id' must be a string", "custom_id"),
    "empty custom_id": (line(custom_id=""), "'custom_id' is empty", "custom_id"),
    "long custom_id": (line(custom_id="x" * 513), "longer than 512", "custom_id"),
    "NUL in custom_id": (line(custom_id="a\0b"), "NUL", "custom_id"),
    "no method": (line(method=None), "'method' is missing", "method"),
    "GET": (line(method="GET"), "'method' must be 'POST'", "method"),
    "no url": (line(url=None), "'url' is missing", "url"),
    "another url": (line(url="/v1/completions"), "'url' must be", "url"),
    "no body": (line(body=None), "'body' is missing", "body"),
    "body is text": (line(body="x"), "must be a JSON object", None),
    "unknown parameter": (line(body={**BODY, "fooo": 1}), "'fooo'", "fooo"),
    "no messages": (line(body={"model": "sim"}), "'messages'", "messages"),
    "no model": (line(body={"messages": BODY["messages"]}), "'model'", "model"),
    "another model": (line(body={**BODY, "model": "other"}), "not served here", "model"),
    "bad temperature": (line(body={**BODY, "temperature": 9}), "'temperature'", "temperature"),
    "streamed": (line(body={**BODY, "stream": True}), "'stream'", "stream"),
    "an empty object": (b"{}", "'custom_id' is missing", "custom_id"),
}


# Alone in a file, these are documents or good lines.
FINE_ALONE = {"no body", "body is text", "an empty object"}
LIMITS = pytest.mark.parametrize("options", [{"max_line_bytes": 500_000, "strict": True}], ids=["limits"])


@LIMITS
def test_each_bad_line_fails_alone_with_its_line_number(world: World) -> None:
    job_id = world.running(b"\n".join([GOOD, *(bad for bad, _, _ in BAD_LINES.values())]))
    job = world.check_counts(job_id)
    assert (job.total, job.failed) == (len(BAD_LINES) + 1, len(BAD_LINES))
    items = world.items(job_id)
    assert (items[0].status, items[0].custom_id) == ("pending", "good")
    expected = zip(items[1:], job.errors, BAD_LINES.values(), strict=True)
    for number, (item, listed, (bad, message, param)) in enumerate(expected, start=2):
        assert (item.status, item.error_code) == ("failed", "invalid_request")
        has_good_id = param not in (None, "custom_id") or message == "must be a JSON object" or b"odd" in bad
        wanted_id = json.loads(bad.decode(errors="replace"))["custom_id"] if has_good_id else None
        assert item.custom_id == wanted_id
        assert item.error_message is not None
        assert message in item.error_message and item.error_message.startswith(f"Line {number}")
        wanted = {"code": "invalid_request", "line": number, "message": item.error_message, "param": param}
        assert listed == wanted
    # The good line runs; the others are in the error file.
    job = world.run_through(job_id)
    assert (job.status, job.succeeded) == ("completed", 1)
    error_lines = world.file_lines(job.error_file_id)
    assert len(error_lines) == len(BAD_LINES)
    assert [each["custom_id"] for each in error_lines] == [item.custom_id for item in items[1:]]


@LIMITS
@pytest.mark.parametrize("name", [name for name in BAD_LINES if name not in FINE_ALONE])
def test_a_file_without_a_good_line_fails_the_job(world: World, name: str) -> None:
    bad, message, param = BAD_LINES[name]
    job_id = world.submit(bad + b"\n")
    assert world.ingest(job_id).progress is Progress.DONE
    job = world.check_counts(job_id)
    assert (job.status, job.total, job.failed) == ("failed", 1, 1)
    assert job.failed_at is not None
    (error,) = job.errors
    assert (error["line"], error["param"]) == (1, param) and message in error["message"]


def test_unknown_parameters_of_a_line_are_ignored_and_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "bros.ingest"):
        job_id = world.running(line(body={**BODY, "fooo": 1, "user": "me"}))
    assert "ignored in its lines: 'fooo', 'user'" in caplog.text
    assert world.run_through(job_id).succeeded == 1


@pytest.mark.parametrize("data", [b"", b"\n\n  \r\n", b"\xef\xbb\xbf"], ids=["empty", "blank", "BOM"])
def test_an_empty_file_fails_the_job(world: World, data: bytes) -> None:
    job_id = world.submit(data)
    world.ingest(job_id)
    job = world.check_counts(job_id)
    assert (job.status, job.total) == ("failed", 0)
    assert job.errors[0]["code"] == "empty_file"


def test_a_missing_file_fails_the_job(world: World) -> None:
    job_id = world.submit(batch_lines(1))
    (world.settings.files_dir / world.job(job_id).input_file_id).unlink()
    world.ingest(job_id)
    assert (world.job(job_id).status, world.job(job_id).errors[0]["param"]) == ("failed", "input_file_id")


def test_bom_crlf_blank_lines_and_a_missing_last_newline_are_accepted(world: World) -> None:
    lines = [json.dumps(each, ensure_ascii=False).encode() for each in batch_lines(3)]
    job_id = world.running(b"\xef\xbb\xbf" + lines[0] + b"\r\n\r\n \t\n" + lines[1] + b"\n" + lines[2])
    assert [item.line_no for item in world.items(job_id)] == [1, 4, 5]
    assert world.check_counts(job_id).total == 3


def test_bodies_are_stored_exactly_as_they_are_in_the_file(world: World) -> None:
    body = '{"messages":[{"role":"user","content":"\\u0000 \\ud83d\\ude42 \U0001f642 ä"}],  "model":"sim"}'
    raw = f'{{"custom_id":"a","method":"POST","url":"{CHAT}","body":{body}}}'
    job_id = world.running(raw.encode())
    assert world.items(job_id)[0].body == body
    assert world.run_through(job_id).succeeded == 1


def test_the_first_good_line_decides_the_form(world: World) -> None:
    page = {"url": "https://example.org", "body": "A web page is a document.", "text": "t"}
    job_id = world.running(
        [{"custom_id": "", "method": "POST", "url": CHAT, "body": {}}, page, batch_line("x")]
    )
    assert world.job(job_id).ingest_form == "document"
    assert world.statuses(job_id) == ["failed", "pending", "pending"]
    job_id = world.running([batch_line("x"), page])
    assert world.job(job_id).ingest_form == "batch"
    assert world.statuses(job_id) == ["pending", "failed"]


@pytest.mark.parametrize(
    ("document", "custom_id"),
    [
        ({"id": 3}, "3"),
        ({"id": "a"}, "a"),
        ({"id": 1.0}, "1"),
        ({"custom_id": "c", "id": "a"}, "c"),
        ({"id": None}, "1"),
        ({}, "1"),
    ],
)
def test_custom_id_of_a_document_is_its_id_or_line_number(
    world: World, document: dict[str, Any], custom_id: str
) -> None:
    job_id = world.running([document])
    assert [item.custom_id for item in world.items(job_id)] == [custom_id]


@pytest.mark.parametrize("bad_id", [1.5, True, [], {}, "x" * 513, "a\0"])
def test_documents_with_an_invalid_id_fail(world: World, bad_id: object) -> None:
    job_id = world.running([{"id": 1, "text": ""}, {"id": bad_id, "text": ""}])
    assert world.statuses(job_id) == ["pending", "failed"]


def test_invalid_defaults_fail_the_job_at_once(world: World) -> None:
    job_id = world.submit([{"text": "a"}], defaults={"prompt": "{text}", "temperature": 99})
    world.ingest(job_id)
    job = world.check_counts(job_id)
    assert job.status == "failed" and job.errors[0]["param"] == "temperature"


def test_a_model_that_is_not_served_fails_the_job(world: World) -> None:
    job_id = world.submit(batch_lines(1), model="gpt-5")
    world.ingest(job_id)
    assert world.job(job_id).status == "failed"
    assert "'gpt-5' is not served" in world.job(job_id).errors[0]["message"]


def test_only_the_first_hundred_errors_are_listed(world: World) -> None:
    world.settings = world.settings.model_copy(update={"ingest_group_lines": 30})
    job_id = world.running(b"\n".join([GOOD, *[b"nonsense"] * 250]))
    job = world.check_counts(job_id)
    assert (len(job.errors), job.failed) == (100, 250)
    assert [error["line"] for error in job.errors] == list(range(2, 102))


@pytest.mark.parametrize("options", [{"ingest_group_lines": 7, "lease_s": 0.001}])
def test_ingest_continues_where_a_dead_run_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may die at any statement of any group: before, during or after a commit."""
    lines = [GOOD.replace(b"good", b"doc-%d" % number) for number in range(100)]
    lines[13] = b"nonsense"
    lines[40] = lines[3]
    lines.insert(60, b"")
    job_id = world.submit(b"\n".join(lines))
    rng = random.Random(11)
    mortals = {"insert_items": new_items, "extend_lease": job_leases, "hold_lease": job_leases}
    real = {name: getattr(module, name) for name, module in mortals.items()}

    class Death(BaseException):
        pass

    def mortal(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if rng.random() < 0.12:
                raise Death
            answer = real[name](*args, **kwargs)
            if rng.random() < 0.12:
                raise Death
            return answer

        return call

    for name, module in mortals.items():
        monkeypatch.setattr(module, name, mortal(name))
    deaths = 0
    for _ in range(500):
        try:
            if world.ingest(job_id).progress is Progress.DONE:
                break
        except Death:
            deaths += 1
            world.check_counts(job_id)
    assert deaths > 5, "the test kills too rarely"
    job = world.check_counts(job_id)
    assert (job.status, job.total, job.failed) == ("in_progress", 100, 1)
    assert [item.line_no for item in world.items(job_id)] == [n for n in range(1, 102) if n != 61]


@pytest.mark.parametrize("options", [{"ingest_group_lines": 5}])
def test_ingest_stops_at_its_time_budget_and_continues(world: World) -> None:
    job_id = world.submit(batch_lines(23))
    runs = 0
    while world.ingest(job_id, until_s=0.0).progress is Progress.MORE:
        runs += 1
        assert world.check_counts(job_id).total == min(5 * runs, 23)
    assert runs == 5
    assert world.check_counts(job_id).total == 23


def test_one_run_at_a_time_ingests_a_job(world: World) -> None:
    job_id = world.submit(batch_lines(3))
    with writing(world.database) as connection:
        leased = job_leases.take_lease(connection, job_id, (JobStatus.VALIDATING,), 30, time.time())
    assert leased is not None
    assert world.ingest(job_id).progress is Progress.NOT_OURS
    with writing(world.database) as connection, pytest.raises(LeaseLost):
        job_leases.hold_lease(connection, replace(leased[1], token="another token"))


def test_ingest_of_a_cancelled_job_stops(world: World) -> None:
    job_id = world.submit(batch_lines(3))
    world.cancel(job_id)
    assert world.ingest(job_id).progress is Progress.NOT_OURS
    world.finalize(job_id)
    assert world.check_counts(job_id).status == "cancelled"


def test_memory_does_not_grow_with_a_giant_line(world: World, tmp_path: Path) -> None:
    world.settings = world.settings.model_copy(update={"max_line_bytes": 100_000})
    giant = b'{"text": "' + b"x" * 30_000_000 + b'"}'
    job_id = world.submit(GOOD + b"\n" + giant + b"\n" + GOOD.replace(b"good", b"after") + b"\n")
    del giant
    tracemalloc.start()
    world.ingest(job_id)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    assert world.statuses(job_id) == ["pending", "failed", "pending"]
    assert [item.line_no for item in world.items(job_id)] == [1, 2, 3]


def test_a_line_of_exactly_the_limit_is_read(world: World) -> None:
    world.settings = world.settings.model_copy(update={"max_line_bytes": len(GOOD)})
    longer = GOOD.replace(b"Hello", b"Hello!")
    job_id = world.running(GOOD + b"\r\n" + longer + b"\r\n" + longer)
    assert world.statuses(job_id) == ["pending", "failed", "failed"]


def test_an_input_file_is_in_use_until_its_job_ends(world: World) -> None:
    job_id = world.running(batch_lines(1))
    file_id = world.job(job_id).input_file_id
    with writing(world.database) as connection:
        assert files.file_in_use(connection, file_id)
    world.run_through(job_id)
    with writing(world.database) as connection:
        assert not files.file_in_use(connection, file_id)
