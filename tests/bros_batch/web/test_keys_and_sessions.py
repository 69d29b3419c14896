"""Keys that are created and revoked while the server runs, sessions opened with them, and the audit log of it all."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from bros_batch.db import api_keys
from bros_batch.db.connections import open_database, writing
from bros_batch.db.table_rows import ApiKey
from bros_batch.web.audit import ALWAYS_LOGGED, Repetitions
from bros_batch.web.login_attempts import MAX_FAILURES, LoginAttempts
from bros_batch.web.session_cookie import COOKIE
from tests.bros_batch.web.browser import browser
from tests.bros_batch.web.serving import Web, serving, web_settings
from tests.services import wait_for

KEY = "sk-very-secret-key"
HTML = {"Accept": "text/html"}
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def settings_of(tmp_path: Path, text_model: Path) -> Any:
    return lambda **options: web_settings(tmp_path, text_model, **options)


@pytest.fixture
def guarded(settings_of: Any) -> Iterator[Web]:
    with serving(settings_of(api_key=KEY)) as web:
        yield web


def database_of(web: Web) -> Engine:
    return open_database(web.settings.resolved_database_url)


def create(web: Web, name: str) -> tuple[ApiKey, str]:
    with writing(database_of(web)) as connection:
        return api_keys.create_api_key(connection, name)


def revoke(web: Web, key: ApiKey) -> None:
    with writing(database_of(web)) as connection:
        assert api_keys.revoke_api_key(connection, key.id)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def log_in(http: httpx.Client, secret: str) -> None:
    assert http.post("/login", data={"key": secret}).status_code == 303


# Keys ---------------------------------------------------------------------------------------------------------------


def test_a_running_server_knows_of_new_and_revoked_keys(guarded: Web) -> None:
    with guarded.http() as http:
        assert http.get("/v1/models", headers=bearer("bros-unknown")).status_code == 401
        key, secret = create(guarded, "laptop")
        wait_for(lambda: http.get("/v1/models", headers=bearer(secret)).status_code == 200, "the new key")
        _, other = create(guarded, "server")
        revoke(guarded, key)
        wait_for(lambda: http.get("/v1/models", headers=bearer(secret)).status_code == 401, "the revocation")
        assert http.get("/v1/models", headers=bearer(other)).status_code == 200
        assert http.get("/v1/models", headers=bearer(KEY)).status_code == 200


def test_the_first_key_locks_a_server_without_one_and_revoking_it_opens_nothing(settings_of: Any) -> None:
    with serving(settings_of()) as web, web.http() as http:
        assert http.get("/v1/models").status_code == 200
        key, secret = create(web, "first")
        wait_for(lambda: http.get("/v1/models").status_code == 401, "the lock")
        assert http.get("/", headers=HTML).headers["location"] == "/login?next=/"
        assert http.get("/v1/models", headers=bearer(secret)).status_code == 200
        revoke(web, key)
        wait_for(lambda: http.get("/v1/models", headers=bearer(secret)).status_code == 401, "the revocation")
        assert http.get("/v1/models").status_code == 401
        assert http.get("/health").status_code == 200


def test_without_a_database_only_the_key_of_the_server_is_valid(settings_of: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql://nobody@127.0.0.1:{taken.getsockname()[1]}/none?connect_timeout=2"
    from bros_batch.web.app import create_app
    from tests.bros_batch.web.serving import serving_app

    settings = settings_of(database_url=url, api_key=KEY)
    with serving_app(create_app(settings), settings) as web, web.http() as http:
        assert http.get("/v1/models", headers=bearer(KEY)).status_code == 200
        unknown = http.get("/v1/models", headers=bearer("bros-other"))
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "database_unavailable")


# Sessions -----------------------------------------------------------------------------------------------------------


def test_a_session_and_its_streams_end_with_the_key(guarded: Web) -> None:
    key, secret = create(guarded, "browser")
    with guarded.http() as http, guarded.http() as other:
        log_in(http, secret)
        log_in(other, KEY)
        with http.stream("GET", "/", headers=EVENTS) as response:
            lines = response.iter_lines()
            assert next(lines)
            revoke(guarded, key)
            assert "data: [DONE]" in list(lines)  # the stream ends
        wait_for(lambda: http.get("/v1/models").status_code == 401, "the end of the session")
        assert http.post("/jobs/x/pause").status_code == 401
        assert other.get("/v1/models").status_code == 200


def test_another_key_of_the_server_ends_all_sessions(settings_of: Any) -> None:
    with serving(settings_of(api_key=KEY)) as web, web.http() as http:
        _, secret = create(web, "browser")
        log_in(http, KEY)
        by_server_key = http.cookies[COOKIE]
        log_in(http, secret)
        by_other_key = http.cookies[COOKIE]
    with serving(settings_of(api_key="sk-changed")) as web, web.http() as http:
        for value in (by_server_key, by_other_key):
            assert http.get("/v1/models", headers={"Cookie": f"{COOKIE}={value}"}).status_code == 401


def test_logout_ends_the_session_for_everyone_who_has_the_cookie(guarded: Web) -> None:
    with guarded.http() as http:
        log_in(http, KEY)
        stolen = {"Cookie": f"{COOKIE}={http.cookies[COOKIE]}"}
        assert "Log out" in http.get("/", headers=HTML).text
        answer = http.post("/logout", headers={"Origin": guarded.url})
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert COOKIE not in http.cookies
        assert http.get("/", headers=HTML).status_code == 303
    with guarded.http() as http:
        assert http.get("/v1/models", headers=stolen).status_code == 401
        assert http.post("/logout", headers=stolen).status_code == 303
        assert http.post("/logout", headers={"Origin": "https://evil.example"}).status_code == 403
        log_in(http, KEY)
        assert http.get("/v1/models").status_code == 200


@pytest.mark.parametrize("other", ['theme={"dark":true}', "näme=x", "=", "a=b=c; d"])
def test_cookies_of_other_programs_on_this_host_do_not_end_the_session(guarded: Web, other: str) -> None:
    with guarded.http() as http:
        log_in(http, KEY)
        cookies = f"{other}; {COOKIE}={http.cookies[COOKIE]}".encode("latin-1")
    with guarded.http() as http:
        assert http.get("/v1/models", headers={b"Cookie": cookies}).status_code == 200


def test_without_keys_there_is_nothing_to_log_out_of(web: Web) -> None:
    with web.http(headers=HTML) as http:
        assert "Log out" not in http.get("/").text


def test_the_cookie_is_secure_behind_a_proxy_with_https(guarded: Web) -> None:
    with guarded.http() as http:
        plain = http.post("/login", data={"key": KEY}).headers["set-cookie"]
        assert "secure" not in plain.lower()
        secure = http.post("/login", data={"key": KEY}, headers={"X-Forwarded-Proto": "https"})
        assert "secure" in secure.headers["set-cookie"].lower()


def test_the_login_page_allows_nothing_but_its_own_style(guarded: Web) -> None:
    with guarded.http() as http:
        for answer in (http.get("/login"), http.post("/login", data={"key": "wrong"})):
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
        assert http.head("/login").status_code == 200


def test_a_browser_logs_in_and_out(guarded: Web) -> None:
    with browser() as chrome:
        chrome.get(guarded.url)
        assert chrome.current_url.endswith("/login?next=/")
        background = chrome.execute_script(
            "return getComputedStyle(document.querySelector('button')).backgroundColor"
        )
        assert background == "rgb(36, 88, 211)"  # the style is in effect
        chrome.find_element("id", "key").send_keys(KEY)
        chrome.find_element("tag name", "button").click()
        wait_for(lambda: "jobs" in chrome.page_source.lower() and not chrome.current_url.endswith("next=/"))
        chrome.find_element("xpath", "//button[text()='Log out']").click()
        wait_for(lambda: chrome.current_url.endswith("/login"), "the login page")
        errors = [
            entry for entry in chrome.get_log("browser") if "Content Security Policy" in entry["message"]
        ]
        assert errors == []


def test_wrong_keys_at_the_login_are_limited(guarded: Web) -> None:
    with guarded.http() as http:
        statuses = [http.post("/login", data={"key": "wrong"}).status_code for _ in range(MAX_FAILURES + 1)]
        assert statuses == [401] * MAX_FAILURES + [429]
        right = http.post("/login", data={"key": KEY})
        assert right.status_code == 429
        assert int(right.headers["retry-after"]) > 0
        other = http.post("/login", data={"key": KEY}, headers={"X-Forwarded-For": "203.0.113.7"})
        assert other.status_code == 303


def test_login_attempts_are_counted_per_address_and_forgotten() -> None:
    attempts = LoginAttempts()
    for _ in range(MAX_FAILURES):
        assert attempts.wait_s("a", 0.0) == 0.0
        attempts.failed("a", 0.0)
    assert attempts.wait_s("a", 10.0) == 50.0
    assert attempts.wait_s("b", 10.0) == 0.0
    assert attempts.wait_s("a", 60.0) == 0.0
    attempts.failed("a", 60.0)
    assert attempts.wait_s("a", 60.0) == 0.0


# The audit log ------------------------------------------------------------------------------------------------------


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The lines of the audit log so far."""
    monkeypatch.setattr("bros_batch.web.audit._repetitions", Repetitions())
    caplog.set_level(logging.INFO, "bros.audit")

    def lines() -> list[dict[str, Any]]:
        messages = [record.getMessage() for record in caplog.records if record.name == "bros.audit"]
        assert all("\n" not in message and message.isascii() for message in messages)
        return [json.loads(message) for message in messages]

    return lines


def test_changes_are_logged_with_who_made_them(audit: Any, guarded: Web) -> None:
    key, secret = create(guarded, "la\nptop")
    with guarded.http(headers=bearer(secret)) as http:
        files = {"file": ("f.jsonl", b"{}\n")}
        made = http.post("/v1/files", files=files, data={"purpose": "batch"}).json()["id"]
        request = {"input_file_id": made, "endpoint": "/v1/completions", "defaults": {"prompt": "x"}}
        job = http.post("/v1/batches", json=request).json()["id"]
        http.post(f"/v1/batches/{job}/cancel")
        http.delete("/v1/files/none")
    with guarded.http() as http:
        log_in(http, KEY)
        http.post("/logout")
    found = audit()
    assert [line["event"] for line in found] == [
        "file.created", "job.created", "job.cancel", "login", "logout"
    ]  # fmt: skip
    for line in found[:3]:
        assert (line["key"], line["key_name"], line["address"]) == (key.id, "la\nptop", "127.0.0.1")
        assert line["request_id"].startswith("req_")
    assert found[0]["file"] == made
    assert found[1]["job"] == found[2]["job"] == job
    assert found[3]["key"] == "server"
    assert secret not in json.dumps(found)
    assert KEY not in json.dumps(found)


def test_keys_created_and_revoked_elsewhere_are_logged(audit: Any, guarded: Web) -> None:
    with guarded.http() as http:
        http.get("/v1/models", headers=bearer("bros-unknown"))
        key, secret = create(guarded, "laptop")
        wait_for(lambda: http.get("/v1/models", headers=bearer(secret)).status_code == 200, "the new key")
        revoke(guarded, key)
        wait_for(lambda: http.get("/v1/models", headers=bearer(secret)).status_code == 401, "the revocation")
    events = [(line["event"], line["subject"]) for line in audit() if line["event"].startswith("key.")]
    assert events == [("key.created", key.id), ("key.revoked", key.id)]


def test_rejections_are_logged(audit: Any, settings_of: Any) -> None:
    with serving(settings_of(api_key=KEY, max_body_bytes=1000)) as web, web.http() as http:
        http.get("/v1/models%0aevent=x", headers=bearer("wrong"))
        http.post("/login", data={"key": "wrong"})
        http.post("/jobs/x/pause", headers={"Origin": "https://evil.example"})
        http.post("/v1/completions", content=b"x" * 1001, headers=bearer(KEY))
        http.post("/v1/completions", data={"x": "y"}, headers=bearer(KEY))
        http.get("/health", headers={"X": "a" * 40_000})
        http.get("/health?" + "a" * 20_000)
    found = [(line["status"], line["code"]) for line in audit() if line["event"] == "rejected"]
    assert found == [
        (401, "invalid_api_key"), (401, "invalid_api_key"), (403, "cross_site_request"), (413, "too_large"),
        (415, "unsupported_media_type"), (431, "headers_too_large"), (414, "url_too_long"),
    ]  # fmt: skip


def test_other_host_names_are_logged(audit: Any, web: Web) -> None:
    with web.http() as http:
        http.get("/v1/models", headers={"Host": "evil.example"})
    assert [line["code"] for line in audit()] == ["host_not_allowed"]


def test_a_flood_of_rejections_fills_no_disk(audit: Any, guarded: Web) -> None:
    with guarded.http() as http:
        for _ in range(300):
            http.get("/v1/models")
    counts = [line["count"] for line in audit()]
    assert counts == [1, 2, 3, 4, 5, 8, 16, 32, 64, 128, 256]


def test_many_clients_are_logged_together() -> None:
    repetitions = Repetitions()
    logged = sum(repetitions.count("401", f"client {number}", 0.0) is not None for number in range(100_000))
    assert logged < 1000 + ALWAYS_LOGGED + 20
    assert repetitions.count("401", "client 99999", 61.0) == 1
