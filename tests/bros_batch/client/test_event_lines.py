"""Server-sent events: where lines end, and how events arrive."""

from __future__ import annotations

import itertools
import json
from http.server import BaseHTTPRequestHandler

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bros_batch.client.chat_stream import ask
from bros_batch.client.event_lines import event_data
from bros_batch.client.http_client import Client
from tests.http_server import http_server

# Characters at which str.splitlines ends a line, but server-sent events do not.
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"


@given(
    st.lists(st.text(alphabet="a: " + SEPARATORS, min_size=1), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 60), max_size=20),
)
def test_events_are_the_same_however_they_arrive(texts: list[str], ending: str, cuts: list[int]) -> None:
    stream = "".join(f"data: {text}{ending}{ending}" for text in texts).encode()
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    pieces = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert list(event_data(pieces)) == texts


def test_other_fields_and_comments_are_no_data() -> None:
    stream = b": waiting\n\nevent: x\nid: 1\ndata: a\ndata:b\n\nretry: 5\n\ndata: cut off"
    assert list(event_data([stream])) == ["a\nb"]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_an_answer_may_have_any_separator(separator: str) -> None:
    """As JSON encoders write it that do not escape these characters, our server's among them."""
    text = f"one{separator}two"
    chunk = {"choices": [{"delta": {"content": text}}]}
    body = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\ndata: [DONE]\n\n".encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http_server(Handler) as url, Client(url) as client:
        assert ask(client, {}, lambda piece: None).text == text
