"""Responses with many log-probabilities leave the event loop of the web process free, whenever they are made or read.

Work is counted, not timed: the calls of each callback, and the objects in one call of the JSON encoder or decoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select, update

from bros_batch.db.connections import open_database, writing
from bros_batch.db.states import ItemStatus
from bros_batch.db.tables import items, responses
from tests.bros_batch.web.counted_work import CallCounter, JsonCounter, counting_web
from tests.bros_batch.web.serving import MODEL_NAME, Web

MOST_CALLS = 20_000
NUM_TOKENS = 1_600
NUM_LIKELIEST = 4
# 512 tokens are encoded in one call. Each has five log-probabilities of about nine objects.
MOST_OBJECTS = 30_000
BODY = {
    "model": MODEL_NAME,
    "input": "he",
    "max_output_tokens": NUM_TOKENS,
    "top_logprobs": NUM_LIKELIEST,
    "include": ["message.output_text.logprobs"],
    "ignore_eos": True,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, CallCounter]]:
    with counting_web(tmp_path_factory.mktemp("web")) as served:
        yield served


@pytest.fixture(scope="module")
def long(served: tuple[Web, CallCounter]) -> dict[str, Any]:
    """A long response."""
    with served[0].http() as client:
        response: dict[str, Any] = client.post("/v1/responses", json=BODY, timeout=300).json()
    assert num_logprobs(response) == NUM_TOKENS
    return response


def num_logprobs(response: dict[str, Any]) -> int:
    return sum(len(part["logprobs"]) for item in response["output"] for part in item["content"])


def asked(served: tuple[Web, CallCounter], method: str, path: str, body: Any = None) -> str:
    """Return an answer, once it is certain that no callback and no call did much for it."""
    web, counter = served
    with web.http() as client, pytest.MonkeyPatch.context() as patch:
        before = counter.num_callbacks
        counter.most = 0
        client.get("/counting/on")
        objects = JsonCounter(patch)
        answer = client.request(method, path, json=body, timeout=300)
        patch.undo()
        client.get("/counting/off")
    assert answer.status_code == 200, answer.text[:500]
    assert counter.num_callbacks > before
    assert counter.most < MOST_CALLS
    assert objects.most < MOST_OBJECTS
    return answer.text


def last_response(events: str) -> dict[str, Any]:
    event = json.loads(events.rstrip().rpartition("\ndata: ")[2])
    response: dict[str, Any] = event["response"]
    return response


def in_background(web: Web, ended: dict[str, Any]) -> dict[str, Any]:
    """Return a response in the background, whose item has ended as `ended`."""
    with web.http() as client:
        begun: dict[str, Any] = client.post("/v1/responses", json={**BODY, "background": True}).json()
    database = open_database(web.settings.resolved_database_url)
    try:
        with writing(database) as connection:
            job_id = select(responses.c.job_id).where(responses.c.id == begun["id"]).scalar_subquery()
            values = {"status": ItemStatus.SUCCEEDED.value, "result": json.dumps(ended)}
            connection.execute(update(items).where(items.c.job_id == job_id).values(values))
    finally:
        database.dispose()
    return begun


def test_a_long_response_is_made_and_read(served: tuple[Web, CallCounter]) -> None:
    whole = json.loads(asked(served, "POST", "/v1/responses", BODY))
    assert num_logprobs(whole) == NUM_TOKENS
    assert json.loads(asked(served, "GET", f"/v1/responses/{whole['id']}")) == whole


def test_a_long_response_is_streamed_and_replayed(served: tuple[Web, CallCounter]) -> None:
    events = asked(served, "POST", "/v1/responses", {**BODY, "stream": True})
    assert events.count("event: response.output_text.delta\n") > NUM_TOKENS / 2
    whole = last_response(events)
    assert num_logprobs(whole) == NUM_TOKENS
    replayed = asked(served, "GET", f"/v1/responses/{whole['id']}?stream=true")
    assert last_response(replayed) == whole


def test_a_long_response_of_the_background_is_read_and_replayed(
    served: tuple[Web, CallCounter], long: dict[str, Any]
) -> None:
    begun = in_background(served[0], long)
    shown = json.loads(asked(served, "GET", f"/v1/responses/{begun['id']}"))
    assert (shown["id"], shown["background"], shown["status"]) == (begun["id"], True, "incomplete")
    assert shown["output"] == long["output"]
    with served[0].http() as client:  # the first request builds what FastAPI needs for the others
        client.post("/v1/responses/none/cancel")
    assert json.loads(asked(served, "POST", f"/v1/responses/{begun['id']}/cancel")) == shown
    events = asked(served, "GET", f"/v1/responses/{begun['id']}?stream=true")
    assert last_response(events) == shown
    again = asked(served, "GET", f"/v1/responses/{begun['id']}?stream=true&starting_after=100")
    assert events.endswith(again) and again.startswith("event: response.output_text.delta")
