"""Error responses: always the same four keys, and a request id."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings


def check(answer: httpx.Response, status: int) -> dict[str, str | None]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, str | None] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["message"][0].isupper() or error["message"].startswith(("'", "/"))
    assert error["message"].endswith(".")
    return error


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/chat", 404),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/files/file-0", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/batches", 405),
        ("PUT", "/v1/files", 405),
        ("POST", "/health", 405),
    ],
)
def test_unknown_paths_and_methods(web: Web, method: str, path: str, status: int) -> None:
    with web.http() as http:
        answer = http.request(method, path)
    error = check(answer, status)
    assert error["type"] == "invalid_request_error"
    if status == 405:
        assert answer.headers["allow"]


def test_the_allow_header_has_every_method(web: Web) -> None:
    with web.http() as http:
        assert http.put("/v1/files").headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\x00", b"\xff\xfe{}", b'{"model": 5}'])
def test_invalid_bodies(web: Web, body: bytes) -> None:
    with web.http() as http:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/batches"):
            assert check(http.post(path, content=body), 400)["code"] == "invalid_request"


def test_a_body_over_the_limit(tmp_path: Path, text_model: Path) -> None:
    with serving(web_settings(tmp_path, text_model, max_body_bytes=1000)) as web, web.http() as http:
        for content in (b"x" * 1001, (b"x" * 600 for _ in range(3))):
            error = check(http.post("/v1/chat/completions", content=content), 413)
            assert error["code"] == "too_large"
            assert "1000 bytes" in str(error["message"])
        assert check(http.post("/v1/chat/completions", content=b"x" * 1000), 400)


def test_the_request_id_of_the_client_is_returned(web: Web) -> None:
    with web.http() as http:
        assert http.get("/health", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
        made = http.get("/health", headers={"X-Request-ID": "no good\tid"}).headers["x-request-id"]
        assert made.startswith("req_")
        ids = {http.get("/health").headers["x-request-id"] for _ in range(20)}
        assert len(ids) == 20


def test_a_response_has_its_request_id(web: Web) -> None:
    body = {"model": MODEL_NAME, "prompt": "x", "max_tokens": 1}
    with web.http() as http:
        answer = http.post("/v1/completions", json=body)
        assert answer.json()["id"] == "cmpl-" + answer.headers["x-request-id"].removeprefix("req_")
        with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
            assert stream.headers["x-request-id"]


def test_an_internal_error_shows_no_traceback(
    tmp_path: Path, text_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When the database loses its tables, the client gets 500 and one sentence; the log has the details."""
    settings = web_settings(tmp_path, text_model)
    with serving(settings) as web, web.http() as http:
        import sqlite3

        connection = sqlite3.connect(tmp_path / "bros.db")
        connection.execute("DROP TABLE jobs")
        connection.commit()
        connection.close()
        with caplog.at_level(logging.ERROR):
            answer = http.get("/v1/batches")
        error = check(answer, 500)
        assert error["type"] == "server_error"
        assert "jobs" not in str(error["message"])
        assert "Traceback" not in answer.text
        assert "no such table" in caplog.text
        assert check(http.get("/v1/nothing"), 404)


def test_without_a_database(tmp_path: Path, text_model: Path) -> None:
    """When PostgreSQL is unavailable, the API reports it, and health and metrics still respond."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://nobody@127.0.0.1:{taken.getsockname()[1]}/none?connect_timeout=2"
    from bros_batch.web.app import create_app
    from tests.bros_batch.web.serving import serving_app

    settings = web_settings(tmp_path, text_model, database_url=url)
    with serving_app(create_app(settings), settings) as web, web.http() as http:
        answer = http.get("/v1/batches")
        assert check(answer, 503)["code"] == "database_unavailable"
        assert answer.headers["retry-after"]
        ready = http.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["database"] != "ok"
        assert http.get("/health").json() == {"status": "ok"}
        assert "bros_up" in http.get("/metrics").text


STRANGE = [
    "\0",
    "a\0b",
    "\u202e",
    "%",
    "../../etc/passwd",
    "x" * 5000,
    "9" * 40,
    "-1",
    "''; DROP TABLE jobs",
    "\ud7ff",
    "",
]


@pytest.mark.parametrize("strange", STRANGE)
def test_unusual_strings_never_cause_a_server_error(
    tmp_path: Path, text_model: Path, database_url: str, strange: str
) -> None:
    settings = web_settings(tmp_path, text_model, database_url=database_url)
    with serving(settings) as web, web.http() as http:
        quoted = quote(strange, safe="")
        answers = [
            http.get(f"/v1/{kind}/{quoted}{rest}")
            for kind, rest in (("files", ""), ("files", "/content"), ("batches", ""), ("batches", "/results"))
        ]
        answers += [http.delete(f"/v1/files/{quoted}"), http.post(f"/v1/batches/{quoted}/cancel")]
        for name in ("after", "limit", "status", "search", "order", "purpose"):
            answers += [http.get(path, params={name: strange}) for path in ("/v1/files", "/v1/batches")]
        for field in (
            "input_file_id",
            "name",
            "completion_window",
            "deadline",
            "endpoint",
            "metadata",
            "priority",
        ):
            body = {"input_file_id": "file-0", "endpoint": "/v1/completions", field: strange}
            answers.append(http.post("/v1/batches", json=body))
        files = {"file": (strange or "f", b"{}")}
        made = http.post("/v1/files", files=files, data={"purpose": "batch"})
        answers.append(made)
        if made.is_success:
            body = {"input_file_id": made.json()["id"], "endpoint": "/v1/completions"}
            body |= {
                "name": strange[:256],
                "metadata": {strange[:64]: strange[:512]},
                "defaults": {"prompt": strange},
            }
            answers.append(http.post("/v1/batches", json=body))
            answers.append(http.get(f"/v1/files/{made.json()['id']}/content"))
    for answer in answers:
        assert answer.status_code < 500, (answer.request.url, answer.text)
        if answer.is_error:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_an_invalid_url_parameter_is_named_with_its_value(web: Web) -> None:
    with web.http() as http:
        for limit, expected in (("abc", "an integer"), ("0", "at least 1"), ("101", "at most 100")):
            error = check(http.get("/v1/batches", params={"limit": limit}), 400)
            assert (error["message"], error["param"]) == (
                f"'limit' must be {expected}, not '{limit}'.",
                "limit",
            )


def test_a_deeply_nested_body_is_rejected(web: Web) -> None:
    deep = json.dumps({"model": "m"})[:-1] + ', "metadata": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with web.http() as http:
        check(http.post("/v1/chat/completions", content=deep), 400)
