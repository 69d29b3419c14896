"""The creation of a batch over a connection that breaks: repeated, but with one effect."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bros_batch.client import http_client
from bros_batch.client.http_client import Client, ServiceError, ServiceUnreachable
from tests.bros_batch.web.serving import Web, serving, web_settings
from tests.factories_text import make_text_model


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    model = make_text_model(tmp_path_factory.mktemp("model"))
    with serving(web_settings(tmp_path_factory.mktemp("web"), model)) as web:
        yield web


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "RETRY_INTERVAL_S", 0.0)


@contextmanager
def losing_responses(url: str, num_lost: int) -> Iterator[str]:
    """A proxy in front of the server that loses the responses of the first connections.

    It closes each of them only after the server has answered, so that the request had its effect.
    """
    port = int(url.rsplit(":", 1)[1])
    listener = socket.create_server(("127.0.0.1", 0))
    lost = 0

    def relay() -> None:
        nonlocal lost
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, socket.create_connection(("127.0.0.1", port)) as server:
                request = connection.recv(1 << 20)
                while b"\r\n\r\n" not in request or not request.endswith(b"}"):
                    request += connection.recv(1 << 20)
                server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                response = b"".join(iter(lambda: server.recv(1 << 16), b""))
                if lost < num_lost:
                    lost += 1
                else:
                    connection.sendall(response)

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def body_of(web: Web, name: str) -> dict[str, object]:
    with web.http() as http:
        files = {"file": ("in.jsonl", b'{"text": "a"}\n')}
        file = http.post("/v1/files", data={"purpose": "batch"}, files=files).json()
    return {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "name": name}


def test_a_lost_response_makes_no_second_batch(web: Web) -> None:
    body = body_of(web, "lost")
    with losing_responses(web.url, 3) as url, Client(url) as client:
        batch = client.create_batch(body)
    with Client(web.url) as client:
        assert [each["id"] for each in client.batches(search="lost")] == [batch["id"]]
        assert client.create_batch(body)["id"] != batch["id"], "each call is a request of its own"


def test_a_rejected_request_is_not_repeated(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = Client.post
    monkeypatch.setattr(Client, "post", lambda *arguments: calls.append(1) or real(*arguments))  # type: ignore[func-returns-value]
    with Client(web.url) as client, pytest.raises(ServiceError, match="No such file"):
        client.create_batch({**body_of(web, "x"), "input_file_id": "file-0"})
    assert len(calls) == 1


def test_a_service_that_stays_away_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "RETRY_S", 0.0)
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServiceUnreachable, match="Cannot reach"):
        client.create_batch({})
