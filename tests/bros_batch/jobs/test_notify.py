"""The webhook: what it is told of responses in the background, and that it is told until it listens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from bros_batch.db import response_jobs, responses
from bros_batch.db.connections import writing
from bros_batch.db.tables import StoredResponse
from bros_batch.jobs.notify import notify
from tests.bros_batch.world import FOREVER, World

SECRET = "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0"


class Receiver:
    """Where the webhook leads. `status` is its answer, and `calls` what it was told."""

    def __init__(self) -> None:
        self.status = 200
        self.calls: list[tuple[str, dict[str, str]]] = []

    @contextmanager
    def serving(self) -> Iterator[str]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                receiver.calls.append((body, dict(self.headers)))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def options(receiver: Receiver) -> Iterator[dict[str, Any]]:
    with receiver.serving() as url:
        yield {"webhook_url": url, "webhook_secret": SECRET}


def started(world: World, response_id: str, body: str = '{"model": "sim", "input": "Hello"}') -> str:
    with writing(world.database) as connection:
        job_id = response_jobs.create_response_job(
            connection, endpoint="/v1/responses", model="sim", body=body, priority=0, now_s=1000.0
        )
        row = StoredResponse(response_id, "", None, job_id, 0, 0, "[]", "{}", 1000.0, None, 1000.0, 0)
        responses.create_response(connection, row, [])
    return job_id


def test_each_way_to_end_is_an_event_that_the_client_verifies(world: World, receiver: Receiver) -> None:
    started(world, "resp_done")
    started(world, "resp_bad", '{"model": "sim", "input": []}')
    cancelled = started(world, "resp_cancelled")
    notify(world.worker, FOREVER)
    assert receiver.calls == [], "none has ended"
    world.cancel(cancelled)
    world.prepare()
    world.engine.answer(world.engine.take())
    world.record()
    notify(world.worker, FOREVER)
    client = OpenAI(api_key="x", base_url="http://unused")
    events = [client.webhooks.unwrap(body, headers, secret=SECRET) for body, headers in receiver.calls]
    assert {(event.type, event.data.id) for event in events} == {  # type: ignore[union-attr]
        ("response.completed", "resp_done"),
        ("response.failed", "resp_bad"),
        ("response.cancelled", "resp_cancelled"),
    }
    body, headers = receiver.calls[0]
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + " ", headers, secret=SECRET)
    notify(world.worker, FOREVER)
    assert len(receiver.calls) == 3, "each is told once"


def test_a_call_that_fails_is_repeated_with_growing_pauses_and_given_up(
    world: World, receiver: Receiver
) -> None:
    world.cancel(started(world, "resp_1"))
    receiver.status = 500
    ended_s = world.items(world_job(world))[0].finished_at
    assert ended_s is not None
    for after_s, calls in ((0, 1), (4, 1), (6, 2), (12, 2), (17, 3), (100 * 3600, 4), (200 * 3600, 4)):
        notify(world.worker, FOREVER, now_s=ended_s + after_s)
        assert len(receiver.calls) == calls, after_s
    assert len({headers["webhook-id"] for _, headers in receiver.calls}) == 1


def world_job(world: World) -> str:
    with writing(world.database) as connection:
        found = responses.find_response(connection, "resp_1")
    assert found is not None and found.row.job_id is not None
    return found.row.job_id
