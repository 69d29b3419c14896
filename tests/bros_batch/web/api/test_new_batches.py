"""New batches: requests that are sent twice, models that are not served, templates, and how long output is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from bros_batch.text.template import MAX_TEMPLATE_CHARS
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings

CHAT = "/v1/chat/completions"


@pytest.fixture
def http(web: Web) -> Iterator[httpx.Client]:
    with web.http() as http:
        yield http


def upload(http: httpx.Client, content: bytes = b'{"text": "a"}\n', **fields: str) -> httpx.Response:
    return http.post("/v1/files", data={"purpose": "batch", **fields}, files={"file": ("in.jsonl", content)})


def batch_body(http: httpx.Client, content: bytes = b'{"text": "a"}\n', **extra: Any) -> dict[str, Any]:
    file_id = upload(http, content).json()["id"]
    return {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **extra}


def batch_line(model: str) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    return json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


def test_a_request_that_is_sent_again_creates_no_second_batch(http: httpx.Client) -> None:
    body = batch_body(http, name="once")
    headers = {"Idempotency-Key": "key-1"}
    first = http.post("/v1/batches", json=body, headers=headers)
    again = http.post("/v1/batches", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json()["id"] == first.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    found = http.get("/v1/batches", params={"search": "once"}).json()["data"]
    assert [batch["id"] for batch in found] == [first.json()["id"]]
    assert http.post("/v1/batches", json=body).json()["id"] != first.json()["id"]
    other_key = http.post("/v1/batches", json=body, headers={"Idempotency-Key": "key-2"})
    other_client = http.post("/v1/batches", json=body, headers={**headers, "Authorization": "Bearer x"})
    assert len({answer.json()["id"] for answer in (first, other_key, other_client)}) == 3


def test_a_request_that_is_sent_again_after_its_file_was_deleted_returns_its_batch(
    http: httpx.Client,
) -> None:
    body = batch_body(http)
    headers = {"Idempotency-Key": "deleted"}
    first = http.post("/v1/batches", json=body, headers=headers).json()
    http.post(f"/v1/batches/{first['id']}/cancel")
    http.delete(f"/v1/files/{body['input_file_id']}")
    again = http.post("/v1/batches", json=body, headers=headers).json()
    assert again["id"] == first["id"]
    assert again["status"] in ("cancelling", "cancelled")


def test_a_key_with_another_body_is_rejected(http: httpx.Client) -> None:
    body = batch_body(http)
    headers = {"Idempotency-Key": "reused"}
    assert http.post("/v1/batches", json=body, headers=headers).is_success
    answer = http.post("/v1/batches", json={**body, "priority": 1}, headers=headers)
    assert answer.status_code == 422
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (
        "idempotency_key_reused",
        "Idempotency-Key",
    )


def test_a_rejected_request_uses_no_key(http: httpx.Client) -> None:
    body = batch_body(http)
    headers = {"Idempotency-Key": "after an error"}
    assert (
        http.post("/v1/batches", json={**body, "input_file_id": "file-0"}, headers=headers).status_code == 404
    )
    assert http.post("/v1/batches", json=body, headers=headers).is_success
    for key in ("", "x" * 256):
        answer = http.post("/v1/batches", json=body, headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_requests_at_the_same_time_create_one_batch(
    tmp_path: Path, text_model: Path, database_url: str
) -> None:
    settings = web_settings(tmp_path, text_model, database_url=database_url)
    with serving(settings) as web, web.http() as http, ThreadPoolExecutor(8) as pool:
        body = batch_body(http)

        def create(_: int) -> httpx.Response:
            with web.http() as own:
                return own.post("/v1/batches", json=body, headers={"Idempotency-Key": "k"})

        answers = list(pool.map(create, range(16)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len(http.get("/v1/batches").json()["data"]) == 1


def test_a_file_for_a_model_that_is_not_served_is_rejected_at_once(http: httpx.Client) -> None:
    body = batch_body(http, b"\xef\xbb\xbf\nnonsense\n" + batch_line("gpt-4o-mini"))
    answer = http.post("/v1/batches", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "input_file_id")
    for part in ("Line 3", "'gpt-4o-mini'", f"'{MODEL_NAME}'", "submit --model", "--model-alias"):
        assert part in error["message"]
    assert http.post("/v1/batches", json={**body, "defaults": {"model": MODEL_NAME}}).is_success


@pytest.mark.parametrize(
    "content", [b"", b"nonsense\n", b'{"text": "a"}\n', b'{"body": {"model": 5}, "url": ""}\n']
)
def test_a_file_that_names_no_model_is_left_to_ingest(http: httpx.Client, content: bytes) -> None:
    assert http.post("/v1/batches", json=batch_body(http, content)).is_success


@pytest.mark.parametrize("name", ["prompt", "system"])
def test_a_template_that_is_too_long_is_rejected_with_the_limit(http: httpx.Client, name: str) -> None:
    defaults = {name: "{a" + " " * 400_000 + "x}"}
    answer = http.post("/v1/batches", json=batch_body(http, defaults=defaults))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, f"defaults.{name}")
    assert f"{MAX_TEMPLATE_CHARS:,} are allowed" in error["message"]


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"anchor": "created_at"}, "output_expires_after.seconds"),
        ({"anchor": "completed_at", "seconds": 3600}, "output_expires_after.anchor"),
        ({"anchor": "created_at", "seconds": 3599}, "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 3600.5}, "output_expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 10**30}, "output_expires_after.seconds"),
        (5, "output_expires_after"),
    ],
)
def test_how_long_output_is_kept_has_bounds(http: httpx.Client, value: object, param: str) -> None:
    answer = http.post("/v1/batches", json=batch_body(http, output_expires_after=value))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_how_long_output_is_kept_may_be_asked_for(http: httpx.Client) -> None:
    kept = {"anchor": "created_at", "seconds": 3600}
    assert http.post("/v1/batches", json=batch_body(http, output_expires_after=kept)).is_success


@pytest.mark.parametrize(
    "seconds", ["9" * 400, "1" + "0" * 4400, "-1", "3599", "2592001", "1e5", "", "٣٦٠٠x", "\0"]
)
def test_an_upload_with_an_impossible_expiry_is_rejected(http: httpx.Client, seconds: str) -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
    answer = upload(http, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "expires_after")


def test_without_retention_uploads_never_expire(tmp_path: Path, text_model: Path) -> None:
    with serving(web_settings(tmp_path, text_model, file_retention_s=0)) as web, web.http() as http:
        assert upload(http).json()["expires_at"] is None
        asked = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        assert upload(http, **asked).json()["expires_at"] == pytest.approx(time.time() + 3600, abs=60)


@pytest.mark.parametrize(
    "extra",
    [
        {"priority": 10**400},
        {"priority": 2**63},
        {"deadline": 10**400},
        {"deadline": 1e300},
        {"deadline": -(2**63)},
        {"deadline": "1000000000-01-01T00:00:00Z"},
        {"deadline": "9999-12-31T23:59:59-23:59"},
        {"deadline": "0001-01-01T00:00:00+23:59"},
        {"completion_window": "9" * 16},
        {"completion_window": "999999w"},
    ],
    ids=str,
)
def test_numbers_that_no_database_stores_are_rejected(http: httpx.Client, extra: dict[str, Any]) -> None:
    answer = http.post("/v1/batches", json=batch_body(http, **extra))
    assert answer.status_code == 400, answer.text


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ["1" * 2_000_000, "1" + " " * 2_000_000 + "x", "1." * 1_000_000, "-" * 2_000_000]
)
def test_a_long_deadline_is_rejected_at_once(http: httpx.Client, text: str) -> None:
    answer = http.post("/v1/batches", json=batch_body(http, deadline=text))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "deadline")


@pytest.mark.parametrize("digits", [20, 400, 4300, 5000])
def test_a_number_of_any_length_in_the_defaults_does_no_harm(http: httpx.Client, digits: int) -> None:
    body = json.dumps(batch_body(http, defaults={"max_tokens": 0}))
    content = body.replace('"max_tokens": 0', f'"max_tokens": {"9" * digits}')
    answer = http.post("/v1/batches", content=content)
    assert answer.status_code in (200, 400), answer.text
    assert http.get("/v1/batches").is_success


@pytest.mark.parametrize("name", ["\ud800", "\u0000", "x\u0000y"])
@pytest.mark.parametrize("where", ["name", "metadata", "defaults"])
def test_text_that_no_database_stores_does_no_harm(
    tmp_path: Path, text_model: Path, database_url: str, where: str, name: str
) -> None:
    extra = {"name": name, "metadata": {name: name}, "defaults": {"prompt": name + "{text}"}}[where]
    with serving(web_settings(tmp_path, text_model, database_url=database_url)) as web, web.http() as http:
        content = json.dumps({**batch_body(http), where: extra})
        answer = http.post("/v1/batches", content=content)
        assert answer.status_code in (200, 400), answer.text
        assert http.get("/v1/batches").is_success


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files"])
@pytest.mark.parametrize("limit", ["0", "-1", str(2**63), "9" * 5000, "1e3", "x"])
def test_a_limit_out_of_range_is_rejected(http: httpx.Client, path: str, limit: str) -> None:
    answer = http.get(path, params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
