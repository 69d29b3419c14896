"""Input files of every form, from ingest to results: nothing of a file is lost in silence."""

from __future__ import annotations

import json

import pytest

from bros_batch.text.template import MAX_TEMPLATE_CHARS
from tests.bros_batch.world import World, batch_line


def ids(world: World, job_id: str) -> list[str | None]:
    return [item.custom_id for item in world.items(job_id)]


def test_pages_with_a_url_and_a_body_are_documents(world: World) -> None:
    page = {"url": "https://example.org", "title": "A page", "body": "Its text."}
    with_object = {"url": "https://example.org", "body": {"html": "<p>"}}
    job_id = world.running([page, with_object], defaults={"prompt": "Read: {body}"})
    assert world.job(job_id).ingest_form == "document"
    assert world.run_through(job_id).succeeded == 2


@pytest.mark.parametrize("options", [{"ingest_group_lines": 3}])
def test_documents_that_repeat_an_id_are_all_run(world: World) -> None:
    lines = [
        {"id": each, "text": "x"} for each in ("a", "b", "a", "c", "a", "a:line-7", "a", "b", "a:line-7")
    ]
    job_id = world.running(lines)
    assert ids(world, job_id) == [
        "a", "b", "a:line-3", "c", "a:line-5", "a:line-7", "a:line-7:line-7", "b:line-8", "a:line-7:line-9",
    ]  # fmt: skip
    job = world.run_through(job_id)
    assert (job.succeeded, job.failed) == (len(lines), 0)
    assert [line["custom_id"] for line in world.file_lines(job.output_file_id)] == ids(world, job_id)


@pytest.mark.parametrize("options", [{"ingest_group_lines": 2}])
def test_a_batch_line_that_repeats_an_id_names_both_lines(world: World) -> None:
    job_id = world.running([batch_line(each) for each in ("a", "b", "c", "a", "d", "d")])
    messages = [error["message"] for error in world.job(job_id).errors]
    assert messages == [
        "Line 4: the custom_id 'a' was used by an earlier line, line 1.",
        "Line 6: the custom_id 'd' was used by an earlier line, line 5.",
    ]


def test_whole_numbers_that_became_floats_are_ids(world: World) -> None:
    job_id = world.running(b'{"id": 1.0, "text": "a"}\n{"id": 2.0, "text": "b"}\n{"id": null, "text": "c"}\n')
    assert ids(world, job_id) == ["1", "2", "3"]
    assert world.run_through(job_id).succeeded == 3


def test_a_model_of_the_job_runs_lines_for_any_model(world: World) -> None:
    lines = [batch_line("a", model="gpt-4o-mini"), batch_line("b")]
    job_id = world.running(lines, defaults={"model": "sim"})
    job = world.run_through(job_id)
    assert job.succeeded == 2
    assert {line["response"]["body"]["model"] for line in world.file_lines(job.output_file_id)} == {"sim"}


def test_a_field_that_one_document_lacks_fails_that_line(world: World) -> None:
    job_id = world.running(
        [{"Vendor": "ACME", "Amount (EUR)": 5}, {"Vendor": "B"}],
        defaults={"prompt": "{Vendor}: {Amount (EUR)}"},
    )
    job = world.run_through(job_id)
    assert (job.succeeded, job.failed) == (1, 1)
    (error,) = world.file_lines(job.error_file_id)
    assert "Line 2: the prompt uses the field 'Amount (EUR)'" in error["error"]["message"]


def test_a_template_that_is_too_long_fails_the_job_at_once(world: World) -> None:
    """The web server rejects it; a job that an older version accepted must not hold a worker."""
    prompt = "{a" + " " * (2 * MAX_TEMPLATE_CHARS) + "x}"
    job_id = world.submit(json.dumps({"text": "a"}).encode(), defaults={"prompt": prompt})
    world.ingest(job_id)
    job = world.check_counts(job_id)
    assert (job.status, job.errors[0]["param"]) == ("failed", "prompt")
    assert "200,000 are allowed" in job.errors[0]["message"]
