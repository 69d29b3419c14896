"""The client of the HTTP API against a small server: pages, streams, and errors as sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import pytest

from bros_batch.client.chat_stream import ask
from bros_batch.client.http_client import Client, ServiceError, ServiceUnreachable
from tests.http_server import http_server

JOBS = [f"batch_{number:024x}" for number in (0xA1 << 88, 0xA2 << 88, 0xB0 << 88)]


@contextmanager
def client_of(status: int, body: bytes) -> Iterator[Client]:
    """A client of a server that responds to everything with `body`, or with pages of JOBS if it is empty."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if body:
                self.respond(body)
                return
            query = parse_qs(urlsplit(self.path).query)
            start = JOBS.index(query["after"][0]) + 1 if "after" in query else 0
            page = JOBS[start : start + min(int(query["limit"][0]), 2)]
            has_more = start + len(page) < len(JOBS)
            data = [{"id": job_id} for job_id in page]
            self.respond(json.dumps({"data": data, "last_id": page[-1], "has_more": has_more}).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.respond(body)

        def respond(self, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http_server(Handler) as url, Client(f"{url}/v1") as client:
        yield client


def test_batches_are_fetched_page_by_page() -> None:
    with client_of(200, b"") as client:
        assert [batch["id"] for batch in client.batches()] == JOBS
        assert [batch["id"] for batch in client.batches(1)] == JOBS[:1]


def test_a_batch_is_found_by_a_unique_prefix() -> None:
    with client_of(200, b"") as client:
        assert client.find_batch("last")["id"] == JOBS[0]
        assert client.find_batch("b")["id"] == client.find_batch("batch_b")["id"] == JOBS[2]
        with pytest.raises(LookupError, match="The ids of 2 jobs start with 'a'"):
            client.find_batch("a")
        with pytest.raises(LookupError, match="No job id starts with 'c'"):
            client.find_batch("c")


def test_a_chat_is_streamed() -> None:
    def event(**chunk: object) -> str:
        return f"data: {json.dumps(chunk)}\n\n"

    stream = (
        event(choices=[{"delta": {"role": "assistant", "content": ""}}])
        + event(choices=[{"delta": {"content": "Hel"}}])
        + event(choices=[{"delta": {"content": "lo"}}, {"delta": {}, "finish_reason": "stop"}])
        + event(choices=[], usage={"completion_tokens": 2})
    )
    pieces: list[str] = []
    with client_of(200, f"{stream}data: [DONE]\n\n".encode()) as client:
        answer = ask(client, {}, pieces.append)
    assert (answer.text, answer.finish_reason, pieces) == ("Hello", "stop", ["Hel", "lo"])
    assert answer.ttft_s is not None
    assert 0 < answer.ttft_s <= answer.total_s
    assert "2 tokens" in answer.stats()
    failure = event(error={"message": "Too many tokens.", "code": "engine_error"})
    with client_of(200, failure.encode()) as client, pytest.raises(ServiceError, match="Too many tokens"):
        ask(client, {}, pieces.append)
    with client_of(200, stream.encode()) as client, pytest.raises(ServiceUnreachable, match="ended early"):
        ask(client, {}, pieces.append)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, b'{"error": {"message": "Wrong.", "code": "invalid_request"}}', ServiceError, "Wrong."),
        (404, b"<html>", ServiceError, "GET /v1/batches/x returned HTTP 404."),
        (200, b"<html>", ServiceError, "is not a bros-batch service: the response is not JSON."),
        (502, b"<html>", ServiceUnreachable, "is unavailable (HTTP 502)."),
    ],
)
def test_errors_become_sentences(status: int, body: bytes, kind: type[Exception], message: str) -> None:
    with client_of(status, body) as client, pytest.raises(kind) as caught:
        client.batch("x")
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9", "Cannot reach bros-batch at http://127.0.0.1:9 (connection refused)"),
        ("ftp://host", "'ftp://host' is not a valid URL"),
        ("host:8000", "'host:8000' is not a valid URL"),
    ],
)
def test_a_wrong_address_is_reported(url: str, message: str) -> None:
    with Client(url) as client, pytest.raises(ServiceUnreachable) as caught:
        client.batch("x")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("url", ["http://[", "http://[::1", "http://host:99999999", "http://host:port"])
def test_a_url_that_cannot_be_read_is_named(url: str) -> None:
    with pytest.raises(ServiceUnreachable, match="is not a valid URL"):
        Client(url)


def test_a_key_that_is_not_ascii_is_named() -> None:
    with pytest.raises(ServiceError, match="not ASCII"):
        Client("http://127.0.0.1:8000", "clé")
