"""The look for a model on the Hub before a start, with a hub of our own."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import huggingface_hub.constants
import pytest

from bros_batch.up import hub
from bros_batch.up.hub import check_on_hub
from bros_batch.up.preflight import StartupError
from tests.http_server import http_server

MODEL = "no/such-model"


@contextmanager
def serving(status: int, body: object = None) -> Iterator[str]:
    """Run a hub that gives every request the same answer."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_args: object) -> None:
            pass

    with http_server(Answer) as url:
        yield url


def check(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> tuple[list[str], str]:
    """Return what was said, and the error."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    said: list[str] = []
    try:
        check_on_hub(MODEL, said.append)
    except StartupError as error:
        return said, str(error)
    return said, ""


def test_it_says_where_it_looks_and_that_there_is_no_such_model(monkeypatch):
    with serving(404, {"error": "Repository not found"}) as endpoint:
        said, error = check(monkeypatch, endpoint)
    assert said == [f"looking for {MODEL} on the Hugging Face Hub"]
    assert error.startswith(f"There is no model {MODEL} on the Hugging Face Hub;")


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        _, error = check(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert "cannot be reached" in error and "--model" in error


def test_a_hub_that_does_not_answer_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(hub, "HUB_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _, error = check(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "has not answered" in error or "cannot be reached" in error


def test_a_model_without_what_is_needed_is_reported_and_a_complete_one_passes(monkeypatch):
    names = ["config.json", "pytorch_model.bin"]

    def info() -> dict[str, object]:
        return {"id": MODEL, "siblings": [{"rfilename": name} for name in names]}

    with serving(200, info()) as endpoint:
        _, error = check(monkeypatch, endpoint)
    assert "lacks tokenizer.json, *.safetensors;" in error
    names += ["tokenizer.json", "model.safetensors"]
    with serving(200, info()) as endpoint:
        assert check(monkeypatch, endpoint)[1] == ""
