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
def test_documents_and_requests_that_repeat_an_id_are_all_run(world: World) -> None:
    given = ["a", "b", "a", "c", "a", "a:line-7", "a", "b", "a:line-7"]
    for lines in ([{"id": each, "text": "x"} for each in given], [batch_line(each) for each in given]):
        job_id = world.running(lines)
        assert ids(world, job_id) == given
        job = world.run_through(job_id)
        assert (job.succeeded, job.failed) == (len(given), 0)
        assert [line["custom_id"] for line in world.file_lines(job.output_file_id)] == given


def test_the_id_of_a_row_is_in_the_field_that_its_job_names(world: World) -> None:
    lines = [{"id": 1, "key": "x"}, {"id": 2, "key": "x"}, {"id": 3}, {"key": 1.5}]
    job_id = world.running(lines, source={"id_field": "key"}, defaults={"prompt": "{id}"})
    assert ids(world, job_id) == ["x", "x", "3", None]
    assert "'key' must be a string or a whole number" in world.job(job_id).errors[0]["message"]


def test_a_row_that_could_not_be_read_is_a_failed_item_with_its_message(world: World) -> None:
    lines = [{"_error": "Row 1, column 'b': bytes."}, {"text": "a"}, {"text": "b", "_error": "an old one"}]
    job_id = world.running(lines)
    job = world.run_through(job_id)
    assert (job.ingest_form, job.succeeded, job.failed) == ("document", 2, 1)
    (error,) = world.file_lines(job.error_file_id)
    assert (error["custom_id"], error["error"]["message"]) == ("1", "Row 1, column 'b': bytes.")


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
    assert "Row 2: the prompt uses the field 'Amount (EUR)'" in error["error"]["message"]


def test_a_template_that_is_too_long_fails_the_job_at_once(world: World) -> None:
    """The web server rejects it; a job that an older version accepted must not hold a worker."""
    prompt = "{a" + " " * (2 * MAX_TEMPLATE_CHARS) + "x}"
    job_id = world.submit(json.dumps({"text": "a"}).encode(), defaults={"prompt": prompt})
    world.ingest(job_id)
    job = world.check_counts(job_id)
    assert (job.status, job.errors[0]["param"]) == ("failed", "prompt")
    assert "200,000 are allowed" in job.errors[0]["message"]
