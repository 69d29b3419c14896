"""The benchmark reads counters of a server whose engine answers late."""

import asyncio
import http.server
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.serving.phase import metrics
from tests.http_server import http_server

SILENT = 'bros_up{part="engine"} 0.0\nbros_items_open 0.0\n'
ANSWER = 'bros_up{part="engine"} 1.0\nbros_prompt_tokens_total{lane="be"} 7.0\n'


@contextmanager
def serving(pages: list[str]) -> Iterator[str]:
    """Serve the pages, one after the other."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pages.pop(0).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http_server(Handler) as url:
        yield url


def test_counters_of_a_silent_engine_are_waited_for() -> None:
    with serving([SILENT, SILENT, ANSWER]) as url:
        found = asyncio.run(metrics(url))
    assert found["bros_prompt_tokens_total.be"] == 7
