"""Where webhooks lead in tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import openai
from openai import OpenAI

from tests.http_server import http_server

SECRET = "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0"


class Receiver:
    """A server that keeps what it was told in `calls`, and answers with `status` once `may_answer` is set."""

    def __init__(self) -> None:
        self.status = 200
        self.location = ""
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    @contextmanager
    def serving(self) -> Iterator[str]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.calls.append((body, headers))
                receiver.may_answer.wait()
                self.send_response(receiver.status)
                if receiver.location:
                    self.send_header("location", receiver.location)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        with http_server(Handler) as url:
            try:
                yield f"{url}/hook"
            finally:
                self.may_answer.set()

    @property
    def ids(self) -> list[str]:
        """The ids of the events, one for each call."""
        return [headers["webhook-id"] for _, headers in self.calls]

    def events(self, secret: str = SECRET) -> list[tuple[str, str]]:
        """Types and subjects of the events, as OpenAI's client verifies and reads them."""
        client = OpenAI(api_key="x", base_url="http://unused")
        found: list[Any] = [
            client.webhooks.unwrap(body, headers, secret=secret) for body, headers in self.calls
        ]
        assert not any(type(event) is openai.BaseModel for event in found)
        return [(event.type, event.data.id) for event in found]
