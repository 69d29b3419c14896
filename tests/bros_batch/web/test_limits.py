"""Limits of connections: size and time of a request's head, half-sent bodies, clients that do not read, numbers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bros_batch.web import connection_room
from tests.bros_batch.web.dashboard.test_site import open_streams
from tests.bros_batch.web.serving import Web, serving, web_settings
from tests.services import wait_for

UPLOAD_HEAD = b'--X\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(web: Web) -> socket.socket:
    url = httpx.URL(web.url)
    return socket.create_connection((url.host, url.port or 0), timeout=60)


def post(path: str, body: bytes, declared: int | None = None, kind: str = "application/json") -> bytes:
    """A request that declares a body of `declared` bytes and has only `body`."""
    size = len(body) if declared is None else declared
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
    )
    return head.encode() + body


def answer_to(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """All that the server sends until it closes the connection: status, headers and body of one answer."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]) if lines[0] else 0, headers, body


def check_error(client: socket.socket, status: int, code: str) -> None:
    found, headers, body = answer_to(client)
    assert found == status
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"].startswith("req_")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


@pytest.fixture
def hasty(tmp_path: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server with short times, all of them far shorter than this test's own."""
    for name in ("HEAD_S", "LINGER_S", "UNREAD_S"):
        monkeypatch.setattr(f"bros_batch.web.http_protocol.{name}", 0.5)
    monkeypatch.setattr("bros_batch.web.request_body.IDLE_S", 0.5)
    monkeypatch.setattr("bros_batch.web.request_body.IDLE_LARGE_S", 0.5)
    monkeypatch.setattr("bros_batch.web.serve.KEEP_ALIVE_S", 0.5)
    with serving(web_settings(tmp_path, text_model)) as web:
        yield web


# Size ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(200)) + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a" * 40_000 + b": b\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 500) for n in range(80)) + b"\r\n",
    ],
    ids=["many headers", "a long value", "a long name", "much together"],
)
@pytest.mark.parametrize("piece_bytes", [7000, 1_000_000])
def test_large_heads_are_rejected(web: Web, head: bytes, piece_bytes: int) -> None:
    with connect(web) as client:
        for start in range(0, len(head), piece_bytes):
            client.sendall(head[start : start + piece_bytes])
        check_error(client, 431, "headers_too_large")


def test_usual_heads_are_accepted(web: Web) -> None:
    headers = {f"X-{number}": "a" * 300 for number in range(80)}
    with web.http() as http:
        assert http.get("/health", headers=headers).status_code == 200
        assert http.get("/health?" + "a" * 15_000).status_code == 200


def test_a_long_url_is_rejected(web: Web) -> None:
    with connect(web) as client:
        client.sendall(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n")
        check_error(client, 414, "url_too_long")


def test_endless_headers_are_not_taken_in(web: Web) -> None:
    """A client that goes on sending headers reads the rejection, and soon cannot send any more."""
    with connect(web) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for number in range(10_000):
                client.sendall(b"X-%d: %s\r\n" % (number, b"a" * 100_000))


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http:// HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /health HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnothing\r\n",
        b"GET / HTTP/1.1\r\nX\x00: a\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_an_error_of_the_api(web: Web, garbage: bytes) -> None:
    with connect(web) as client:
        client.sendall(garbage)
        check_error(client, 400, "invalid_request")


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01", b"GET / HTTP/1.1\r\nX\x00: a\r\n\r\n", post("/chat", b"{}")[:-8] + b"\x00"]
)
def test_garbage_after_a_request_does_not_take_its_answer(web: Web, garbage: bytes) -> None:
    with connect(web) as client:
        client.sendall(GET + garbage)
        client.shutdown(socket.SHUT_WR)
        status, _, body = answer_to(client)
    assert status == 200
    assert b"invalid_request" not in body


# Time ---------------------------------------------------------------------------------------------------------------


def test_a_half_sent_head_is_answered_and_closed(hasty: Web) -> None:
    with connect(hasty) as client:
        client.sendall(GET[:-2])
        check_error(client, 408, "request_timeout")


def test_a_head_that_trickles_is_closed(hasty: Web) -> None:
    with connect(hasty) as client:
        client.sendall(GET[:-2])
        with pytest.raises(OSError):
            for number in range(10_000):
                client.sendall(b"X-%d: a\r\n" % number)
                time.sleep(0.05)


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", GET + b"\r\n"], ids=["nothing", "a line end", "one after a request"]
)
def test_a_connection_without_a_request_is_closed(hasty: Web, sent: bytes) -> None:
    with connect(hasty) as client:
        client.sendall(sent)
        assert answer_to(client)[0] == (200 if sent.startswith(GET) else 0)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/batches", "/chat"])
@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_a_half_sent_body_is_answered_and_closed(hasty: Web, path: str, size: int) -> None:
    with connect(hasty) as client:
        client.sendall(post(path, b'{"model":', size))
        check_error(client, 408, "request_timeout")


@pytest.mark.parametrize("num_sent", [10, 100_000])
def test_half_sent_large_bodies_keep_no_memory_from_others(
    web: Web, monkeypatch: pytest.MonkeyPatch, num_sent: int
) -> None:
    # Whoever would have to wait is rejected.
    monkeypatch.setattr("bros_batch.web.shared_capacity.WAIT_S", 0.0)
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            client = stack.enter_context(connect(web))
            client.sendall(post("/v1/chat/completions", b'{"model":"' + b"x" * num_sent, 33_000_000))
        with web.http() as http:
            body = b'{"model":"none","prompt":"' + b"x" * 2_000_000 + b'"}'
            assert http.post("/v1/completions", content=body).status_code == 404  # there is no such model


@pytest.mark.parametrize("data", [b"x" * 100, b"x" * 2_000_000])
def test_a_half_sent_upload_leaves_no_file(hasty: Web, data: bytes) -> None:
    with connect(hasty) as client:
        body = UPLOAD_HEAD + data
        client.sendall(post("/v1/files", body, len(body) + 1, "multipart/form-data; boundary=X"))
        check_error(client, 408, "request_timeout")
    assert not hasty.settings.files_dir.exists() or not list(hasty.settings.files_dir.iterdir())


def test_a_body_that_nobody_reads_holds_no_connection(hasty: Web) -> None:
    with connect(hasty) as client:
        client.sendall(post("/nowhere", b"", 1000))
        status, _, body = answer_to(client)
        assert status == 404
        assert json.loads(body)["error"]["code"] == "not_found"


@pytest.mark.slow
def test_a_slow_upload_that_makes_progress_is_accepted(
    tmp_path: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bros_batch.web.request_body.IDLE_S", 3.0)
    monkeypatch.setattr("bros_batch.web.http_protocol.HEAD_S", 3.0)

    def form() -> Iterator[bytes]:
        yield b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n' + UPLOAD_HEAD
        for _ in range(8):
            time.sleep(0.5)  # the subject of the test: a slow client
            yield b"{}\n"
        yield b"\r\n--X--\r\n"

    with serving(web_settings(tmp_path, text_model)) as web, web.http() as http:
        headers = {"Content-Type": "multipart/form-data; boundary=X"}
        answer = http.post("/v1/files", content=form(), headers=headers)
    assert answer.json()["bytes"] == 24


def test_a_long_event_stream_stays_open(hasty: Web) -> None:
    with hasty.http(headers={"Accept": "text/event-stream"}) as http, http.stream("GET", "/") as response:
        lines = response.iter_lines()
        assert sum(bool(next(lines)) for _ in range(7)) == 4  # one event per second


def test_a_client_that_does_not_read_is_disconnected(hasty: Web) -> None:
    with hasty.openai() as client:
        file_id = client.files.create(file=("f.jsonl", os.urandom(30_000_000)), purpose="batch").id
    with connect(hasty) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /v1/files/%s/content HTTP/1.1\r\nHost: localhost\r\n\r\n" % file_id.encode())

        def is_disconnected() -> bool:
            try:
                client.sendall(b"\r\n")
            except OSError:
                return True
            return False

        wait_for(is_disconnected, "the end of the connection")


# Numbers ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(tmp_path: Path, text_model: Path) -> Iterator[Web]:
    with serving(web_settings(tmp_path, text_model, max_connections=10)) as web:
        yield web


def open_event_streams(web: Web, count: int, stack: contextlib.ExitStack) -> None:
    """Open streams that stay open until the stack is closed."""
    for _ in range(count):
        client = stack.enter_context(connect(web))
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_half_sent_requests_do_not_keep_others_out(narrow: Web) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(narrow)) for _ in range(50)]
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(GET[:-2])
        with narrow.http() as http:
            assert http.get("/health").status_code == 200


def test_a_connection_too_many_is_rejected_while_all_are_served(narrow: Web) -> None:
    with contextlib.ExitStack() as stack:
        open_event_streams(narrow, 10, stack)
        client = stack.enter_context(connect(narrow))
        check_error(client, 503, "overloaded")
    with narrow.http() as http:
        wait_for(lambda: _is_healthy(http), "room for a connection")


def _is_healthy(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return http.get("/health").status_code == 200
    return False


def test_one_address_has_at_most_half_of_the_connections(
    narrow: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine may hold all of them, since it may be a proxy; so the test makes it another one."""
    monkeypatch.setattr(connection_room, "_is_proxy", lambda _address, _trusted: False)
    with contextlib.ExitStack() as stack:
        open_event_streams(narrow, 5, stack)
        check_error(stack.enter_context(connect(narrow)), 429, "too_many_connections")


def test_a_client_may_send_one_request_ahead(web: Web) -> None:
    with connect(web) as client:
        client.sendall(GET * 1000)
        status, _, rest = answer_to(client)
        assert status == 200
        assert rest.count(b'{"status":"ok"}') == 2


def test_a_stream_ends_with_its_client_even_if_that_sent_more_requests(web: Web) -> None:
    client = connect(web)
    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n" + GET)
    assert client.recv(100).startswith(b"HTTP/1.1 200")
    client.close()
    wait_for(lambda: open_streams() == 0, "the end of the stream")
