"""Responses in the background, and as the lines of a batch, with all services running."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response

from bros_batch.db import jobs
from bros_batch.db.connections import open_database, reading
from bros_batch.db.table_rows import Job
from tests.bros_batch.web.serving import MODEL_NAME, Web, whole_service
from tests.services import Process, Processes, RedisServer, wait_for

ANSWER: dict[str, Any] = {"model": MODEL_NAME, "max_output_tokens": 24, "extra_body": {"ignore_eos": True}}
ENDLESS: dict[str, Any] = {"model": MODEL_NAME, "input": "Hello", "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def services(redis_of_session: RedisServer, text_model: Path) -> Iterator[tuple[Web, Processes]]:
    with whole_service(redis_of_session.url, text_model) as started:
        yield started


@pytest.fixture(scope="module")
def service(services: tuple[Web, Processes]) -> Web:
    return services[0]


@pytest.fixture
def client(service: Web) -> Iterator[OpenAI]:
    with service.openai() as client:
        yield client


def ended(client: OpenAI, response: Response) -> Response:
    def found() -> Response | None:
        now = client.responses.retrieve(response.id)
        return None if now.status in ("queued", "in_progress") else now

    return wait_for(found, "the response")


def job_of(web: Web, response_id: str) -> Job:
    database = open_database(web.settings.resolved_database_url)
    try:
        with reading(database) as connection:
            query = "SELECT job_id FROM responses WHERE id = ?"
            job_id = connection.exec_driver_sql(query, (response_id,)).scalar_one()
            job = jobs.get_job(connection, job_id)
    finally:
        database.dispose()
    assert job is not None
    return job


@pytest.mark.parametrize(("asked", "tier"), [(None, "flex"), ("flex", "flex"), ("priority", "priority")])
def test_a_response_in_the_background_is_that_of_the_foreground(
    service: Web, client: OpenAI, asked: Any, tier: str
) -> None:
    given: dict[str, Any] = {**ANSWER, "input": "Hello", "instructions": "Be brief."}
    if asked:
        given["service_tier"] = asked
    response = client.responses.create(**given, background=True, metadata={"a": "b"})
    assert (response.status, response.background, response.service_tier) == ("queued", True, tier)
    done = ended(client, response)
    here = client.responses.create(**given)
    assert (done.id, done.created_at, done.background) == (response.id, response.created_at, True)
    assert (done.output_text, done.status, done.usage and done.usage.output_tokens) == (
        here.output_text,
        "incomplete",
        24,
    )
    assert (done.metadata, done.instructions, done.service_tier) == ({"a": "b"}, "Be brief.", tier)
    assert done.output[0].id == f"msg_{response.id.removeprefix('resp_')}_0"
    assert done.to_dict().keys() == here.to_dict().keys()
    job = wait_for(lambda: job if (job := job_of(service, response.id)).status == "completed" else None)
    assert (job.succeeded, job.total, job.output_file_id, job.error_file_id) == (1, 1, None, None)
    assert client.batches.list().data == []


def test_its_conversation_continues_in_the_background_and_here(client: OpenAI) -> None:
    first = client.responses.create(**ANSWER, input="One", background=True)
    ended(client, first)
    second = client.responses.create(**ANSWER, input="Two", previous_response_id=first.id, background=True)
    here = client.responses.create(**ANSWER, input="Two", previous_response_id=first.id)
    done = ended(client, second)
    assert (done.output_text, done.previous_response_id) == (here.output_text, first.id)


def test_one_that_has_not_ended_cannot_be_continued_and_can_be_cancelled_or_deleted(client: OpenAI) -> None:
    running = client.responses.create(**ENDLESS, background=True)
    with pytest.raises(openai.BadRequestError, match="cannot be continued"):
        client.responses.create(**ANSWER, input="Two", previous_response_id=running.id)
    cancelled = client.responses.cancel(running.id)
    assert (cancelled.status, cancelled.output) == ("cancelled", [])
    assert client.responses.retrieve(running.id) == cancelled
    client.responses.delete(running.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(running.id)
    deleted = client.responses.create(**ENDLESS, background=True)
    client.responses.delete(deleted.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel(deleted.id)


def test_a_stream_waits_for_it_and_can_be_taken_up_again(client: OpenAI) -> None:
    events = list(client.responses.create(**ANSWER, input="Stream", background=True, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert client.responses.retrieve(last.response.id) == last.response
    again = list(client.responses.retrieve(last.response.id, stream=True, starting_after=4))
    assert again == events[5:]


def restarted_engine(group: Processes, step_s: float) -> Process:
    """Kill the engine, and start it again with steps of this length."""
    (old,) = (each for each in group.started if each.running and "simulated" in arguments(each))
    old.kill()
    flags = arguments(old)[arguments(old).index("engine") + 1 :]
    return group.start([sys.executable, "-m", "engine", *flags, "--simulated-step-s", str(step_s)])


def arguments(process: Process) -> list[str]:
    assert isinstance(process.popen.args, list)
    return [str(each) for each in process.popen.args]


@pytest.fixture
def slow_engine(services: tuple[Web, Processes]) -> Iterator[Processes]:
    """Services whose engine takes some time for an answer."""
    restarted_engine(services[1], 0.02)
    yield services[1]
    restarted_engine(services[1], 0.0)


def test_a_stream_shows_the_output_as_it_grows_and_goes_on_after_any_event(
    slow_engine: Processes, client: OpenAI
) -> None:
    """The client loses its connection in the middle, and then the engine is killed and begins again."""
    given: dict[str, Any] = {**ENDLESS, "max_output_tokens": 400, "temperature": 1.0}
    events: list[Any] = []
    with client.responses.create(**given, background=True, stream=True) as stream:
        for event in stream:
            events.append(event)
            if len(events) == 20:
                break
    response_id = events[0].response.id
    assert client.responses.retrieve(response_id).status == "in_progress"
    with client.responses.retrieve(response_id, stream=True, starting_after=19) as stream:
        for event in stream:
            events.append(event)
            if len(events) == 30:
                restarted_engine(slow_engine, 0.01)
                assert client.responses.retrieve(response_id).status == "in_progress"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete" and last.response.usage.output_tokens == 400
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == last.response.output_text
    again = list(client.responses.retrieve(response_id, stream=True))
    shown = [(event.type, getattr(event, "delta", None)) for event in events]
    assert [(event.type, getattr(event, "delta", None)) for event in again] == shown


def test_a_stream_of_a_response_that_is_cancelled_ends_and_says_so(
    slow_engine: Processes, client: OpenAI
) -> None:
    events: list[Any] = []
    for event in client.responses.create(**ENDLESS, background=True, stream=True):
        events.append(event)
        if len(events) == 20:
            client.responses.cancel(events[0].response.id)
    assert events[-1].type == "response.cancelled"
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_request_that_cannot_run_fails_and_says_why(client: OpenAI) -> None:
    done = ended(client, client.responses.create(model=MODEL_NAME, input="x" * 9999, background=True))
    assert done.status == "failed"
    assert done.error is not None
    assert done.error.code == "invalid_prompt"
    assert "maximum context length" in done.error.message
    events = list(client.responses.retrieve(done.id, stream=True))
    assert events[-1].type == "response.failed"


def test_responses_are_lines_of_a_batch(client: OpenAI, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {"input": "Hello", "instructions": "Be brief.", "ignore_eos": True, "max_output_tokens": 24},
        {"input": "Hello", "previous_response_id": "resp_1"},
        {"input": "Hello", "background": True},
        {"input": "Hello", "stream": True},
        {"input": [{"type": "computer_call"}]},
    ]
    lines = [
        {"custom_id": str(n), "method": "POST", "url": "/v1/responses", "body": {"model": MODEL_NAME, **body}}
        for n, body in enumerate(bodies)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("in.jsonl", text), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
    done = wait_for(lambda: b if (b := client.batches.retrieve(batch.id)).status == "completed" else None)
    assert done.output_file_id is not None
    (line,) = client.files.content(done.output_file_id).text.splitlines()
    response = Response.model_validate(json.loads(line)["response"]["body"])
    here = client.responses.create(**ANSWER, input="Hello", instructions="Be brief.")
    assert (response.output_text, response.status) == (here.output_text, "incomplete")
    assert done.error_file_id is not None
    errors = [json.loads(line) for line in client.files.content(done.error_file_id).text.splitlines()]
    assert [error["custom_id"] for error in errors] == ["1", "2", "3", "4"]
    says = [error["error"]["message"] for error in errors]
    for message, expected in zip(
        says, ["not for batches", "not for batches", "not for batches", "Supported types"], strict=True
    ):
        assert expected in message


def test_documents_can_be_responses_too(client: OpenAI) -> None:
    file = client.files.create(file=("docs.jsonl", b'{"id": "a", "text": "one"}\n'), purpose="batch")
    defaults = {"prompt": "Say {text}", "system": "Be {text}.", "ignore_eos": True, "max_output_tokens": 24}
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/responses",
        completion_window="24h",
        extra_body={"defaults": defaults},
    )
    done = wait_for(lambda: b if (b := client.batches.retrieve(batch.id)).status == "completed" else None)
    assert done.output_file_id is not None
    (line,) = client.files.content(done.output_file_id).text.splitlines()
    response = Response.model_validate(json.loads(line)["response"]["body"])
    here = client.responses.create(**ANSWER, input="Say one", instructions="Be one.")
    assert response.output_text == here.output_text
