"""Every route with every method and odd headers: the right status, and errors in the API's format."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.bros_batch.web.serving import Web, serving

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
PATHS = (
    "/", "/engine", "/chat", "/jobs/x", "/jobs/x/pause", "/jobs/x/nothing", "/jobs",
    "/jobs/x/rows/1", "/jobs/x/rows/1/rerun", "/static/x/style.css", "/static/x/none",
    "/login", "/logout", "/health", "/ready", "/version", "/metrics", "/tokenize", "/detokenize", "/nowhere",
    "/v1", "/v1/", "/v1/models", "/v1/models/x", "/v1/models/a/b", "/v1/files", "/v1/files/x", "/v1/files/x/content",
    "/v1/batches", "/v1/batches/x", "/v1/batches/x/cancel", "/v1/batches/x/results", "/v1/completions",
    "/v1/chat/completions", "/v1/responses", "/v1/responses/x", "/v1/responses/x/cancel", "/v1/responses/x?stream=true",
    "/v1/responses/x/input_items?limit=0", "/v1/responses/%00",
    "/v1/nowhere", "/chat/completions", "//", "/%2e%2e/%2e%2e/etc/passwd", "/a%2fb",
    "/v1/files/a%2fb", "/v1/files/%00", "/v1/files/%ff%fe", "/v1/batches/" + "a" * 5000, "/?%00", "/?a=%ff&b=%",
)  # fmt: skip
HEADERS: dict[str, dict[str, str]] = {
    "none": {},
    "a broken range": {"Range": "bytes=abc"},
    "many ranges": {"Range": "bytes=" + ",".join(f"{n}-{n}" for n in range(3000))},
    "a page wanted": {"Accept": "text/html"},
    "events wanted": {"Accept": "text/event-stream", "Sec-Fetch-Site": "cross-site"},
    "an odd accept": {"Accept": "\xff;;q=x,,/*"},
    "odd cookies": {"Cookie": "bros_session=;;=x; \x01=\xff; bros_session=a.b.c.d"},
    "an upgrade": {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x"},
    "an expectation": {"Expect": "200-ok"},
    "an odd encoding": {"Content-Encoding": "br", "Accept-Encoding": "gzip;q=x, *;q=0"},
    "an odd key": {"Authorization": "Bearer \xff\xfe"},
    "conditions": {"If-Range": "\xff", "If-None-Match": "x", "If-Modified-Since": "yesterday"},
    "forwarding": {"X-Forwarded-For": "evil, , ::::", "X-Forwarded-Proto": "gopher", "Forwarded": "for=x"},
}  # fmt: skip


def check(answer: httpx.Response, accept: str) -> None:
    what = (answer.request.method, answer.request.url, answer.status_code, answer.text[:200])
    assert answer.status_code < 500 or answer.request.url.path == "/ready", what
    assert answer.headers["x-request-id"], what
    kind = answer.headers.get("content-type", "")
    if answer.is_error and answer.request.method != "HEAD":
        is_page = "text/html" in accept and kind.startswith("text/html")
        if not is_page and answer.request.url.path not in ("/ready", "/login"):
            assert kind == "application/json", what
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, what
    if answer.status_code == 405:
        assert answer.headers["allow"], what


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS.keys())
def test_no_request_fails_in_the_server_or_gets_plain_text(web: Web, headers: dict[str, str]) -> None:
    sent = {"Accept": "application/json", **headers}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in sent.items()]
    with web.http() as http:
        for path in PATHS:
            for method in METHODS:
                if method == "GET" and path in ("/", "/engine", "/chat") and "event-stream" in sent["Accept"]:
                    continue  # an open stream, see test_site
                check(http.request(method, path, headers=raw), sent["Accept"])


def test_head_is_get_without_a_body(web: Web) -> None:
    with web.openai() as client:
        file_id = client.files.create(file=("f.jsonl", b"{}\n" * 1000), purpose="batch").id
        batch = client.batches.create(
            input_file_id=file_id, endpoint="/v1/completions", completion_window="24h"
        )
    with web.http() as http:
        for path in (
            "/health", "/version", "/metrics", "/v1/models", "/v1/files", f"/v1/files/{file_id}",
            f"/v1/files/{file_id}/content", "/v1/batches", f"/v1/batches/{batch.id}",
            f"/v1/batches/{batch.id}/results", "/", "/login",
        ):  # fmt: skip
            head, get = http.head(path), http.get(path)
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert head.headers.get("content-type") == get.headers.get("content-type"), path
        events = http.head("/", headers={"Accept": "text/event-stream"})
        assert (events.status_code, events.content) == (200, b"")


@pytest.mark.parametrize(("sent", "status"), [("bytes=abc", 400), ("bytes=9999-", 416), ("bytes=5-1", 416)])
def test_a_wrong_range_is_an_error_of_the_api(web: Web, sent: str, status: int) -> None:
    with web.openai() as client:
        file_id = client.files.create(file=("f.jsonl", b"{}\n"), purpose="batch").id
    with web.http() as http:
        answer = http.get(f"/v1/files/{file_id}/content", headers={"Range": sent})
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.json()["error"]["message"].endswith(".")
        assert status != 416 or answer.headers["content-range"] == "bytes */3"


@pytest.mark.parametrize("accept", ["application/json", "*/*", ""])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/chat/completions"), ("POST", "/completions"), ("GET", "/models"), ("POST", "/files"),
        ("GET", "/batches/batch_0"), ("POST", "/v1/v1/chat/completions"),
    ],
)  # fmt: skip
def test_a_base_url_without_v1_is_told_where_the_api_is(
    web: Web, method: str, path: str, accept: str
) -> None:
    with web.http() as http:
        answer = http.request(method, path, json={}, headers={"Accept": accept})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].endswith(f"The API's base URL is {web.url}/v1.")


def test_a_browser_gets_a_page(web: Web) -> None:
    with web.http(headers={"Accept": "text/html"}) as http:
        answer = http.get("/models")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")


def test_the_same_holds_when_a_key_is_needed(tmp_path: Any, text_model: Any) -> None:
    from tests.bros_batch.web.serving import web_settings

    with serving(web_settings(tmp_path, text_model, api_key="k")) as web, web.http() as http:
        for path in PATHS:
            for method in METHODS:
                answer = http.request(method, path, headers={"Accept": "application/json"})
                check(answer, "application/json")
                if path not in ("/health", "/ready", "/login", "/logout") and "%00" not in path:
                    assert answer.status_code == 401, (method, path)
