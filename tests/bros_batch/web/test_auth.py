"""API keys, the login of browsers, and requests from other sites and for other host names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from bros_batch.db import api_keys
from bros_batch.db.api_keys import digest_of
from bros_batch.db.connections import open_database, writing
from bros_batch.up.preflight import StartupError, check_exposure
from bros_batch.web.api_key import SERVER_KEY_ID, Key, KeyRing
from bros_batch.web.session_cookie import COOKIE, Sessions
from tests.bros_batch.web.serving import Web, serving, web_settings

KEY = "sk-very-secret-key"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, text_model: Path) -> Iterator[Web]:
    with serving(web_settings(tmp_path_factory.mktemp("guarded"), text_model, api_key=KEY)) as web:
        yield web


def test_every_route_except_health_and_readiness_needs_a_key(guarded: Web) -> None:
    with guarded.http() as http:
        assert http.get("/health").status_code == 200
        assert http.get("/ready").status_code in (200, 503)
        for method, path in (
            ("GET", "/v1/models"), ("GET", "/v1/nothing"), ("POST", "/v1/chat/completions"), ("GET", "/metrics"),
            ("GET", "/version"), ("GET", "/"), ("POST", "/v1/files"), ("GET", "/static/x.js"),
        ):  # fmt: skip
            answer = http.request(method, path)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["type"] == "authentication_error"
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]


def test_the_openai_client_reports_an_invalid_key(guarded: Web) -> None:
    with guarded.openai("wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    with guarded.openai(KEY) as client:
        assert list(client.models.list())


@pytest.mark.parametrize(
    "header", ["", "Bearer", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer ä"]
)
def test_invalid_authorization_headers(guarded: Web, header: str) -> None:
    with guarded.http() as http:
        answer = http.get("/v1/models", headers=[(b"authorization", header.encode("latin-1"))])
        assert answer.status_code == 401


def test_keys_in_the_database_are_valid(guarded: Web) -> None:
    database = open_database(guarded.settings.resolved_database_url)
    with writing(database) as connection:
        _, secret = api_keys.create_api_key(connection, "laptop")
    database.dispose()
    with guarded.openai(secret) as client:
        assert list(client.models.list())
        assert list(client.batches.list()) == []


def test_a_browser_logs_in(guarded: Web) -> None:
    with guarded.http() as http:
        asked = http.get("/jobs/x", headers={"Accept": "text/html"})
        assert (asked.status_code, asked.headers["location"]) == (303, "/login?next=/jobs/x")
        page = http.get("/login?next=/jobs/x")
        assert "API key" in page.text
        assert "http" not in page.text.replace("http-equiv", "")
        wrong = http.post("/login?next=/jobs/x", data={"key": "wrong"})
        assert wrong.status_code == 401
        assert "not valid" in wrong.text
        right = http.post("/login?next=/jobs/x", data={"key": KEY})
        assert (right.status_code, right.headers["location"]) == (303, "/jobs/x")
        cookie = right.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert KEY not in cookie
        # A session gives access to pages and downloads. Changes need the key.
        assert http.get("/v1/models").status_code == 200
        assert http.post("/v1/batches", json={}).status_code == 401


def test_a_forged_or_expired_cookie_is_rejected(guarded: Web) -> None:
    def value(server_key: str, key: Key, until: int) -> str:
        return Sessions(KeyRing(server_key, no_keys), server_key).value(key, until, "n")

    async def no_keys() -> list[Any]:
        return []

    own = Key(SERVER_KEY_ID, "BROS_API_KEY", digest_of(KEY))
    other = Key(SERVER_KEY_ID, "BROS_API_KEY", digest_of("other"))
    good = value(KEY, own, 9_999_999_999)
    for bad in (
        "", "x.y", '"', "server", "server.9999999999", "server.9999999999.n.00", "server.x.n.00", "..." * 500,
        value("other", own, 9_999_999_999), value(KEY, other, 9_999_999_999), value(KEY, own, 1_000_000_000),
        value(KEY, replace(own, id="key_0"), 9_999_999_999),
        good.replace(".n.", ".m."), good.replace("9999999999", "9999999998"), good[:-1], good + "0",
    ):  # fmt: skip
        with guarded.http() as http:
            assert http.get("/v1/models", headers={"Cookie": f"{COOKIE}={bad}"}).status_code == 401, bad
    with guarded.http() as http:
        assert http.get("/v1/models", headers={"Cookie": f"{COOKIE}={good}"}).status_code == 200


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "/\\evil.example", "evil"])
def test_login_does_not_redirect_to_other_sites(guarded: Web, target: str) -> None:
    with guarded.http() as http:
        answer = http.post("/login", params={"next": target}, data={"key": KEY})
    assert answer.headers["location"] == "/"


def test_requests_from_other_sites_are_rejected(web: Web) -> None:
    """Without a key, a page of another site in a local browser must not be able to start work here."""
    with web.http() as http:
        answer = http.post("/v1/chat/completions", json={}, headers={"Sec-Fetch-Site": "cross-site"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site_request")
        assert (
            http.post("/v1/chat/completions", json={}, headers={"Sec-Fetch-Site": "same-origin"}).status_code
            == 400
        )


def test_other_host_names_are_rejected_without_a_key(web: Web, guarded: Web) -> None:
    """A foreign host name that points at this machine (DNS rebinding) gives no access."""
    with web.http() as http:
        for host in ("evil.example", "evil.example:8000", "", "localhost.evil.example", "["):
            assert http.get("/v1/models", headers={"Host": host}).status_code == 403
        for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000"):
            assert http.get("/v1/models", headers={"Host": host}).status_code == 200
    with guarded.http(headers={"Authorization": f"Bearer {KEY}", "Host": "batch.example"}) as http:
        assert http.get("/v1/models").status_code == 200


def test_the_key_is_never_logged(guarded: Web, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), guarded.http() as http:
        http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}wrong"})
        http.post("/login", data={"key": KEY})
    assert KEY not in caplog.text


def test_listening_on_all_interfaces_needs_a_key(tmp_path: Path, text_model: Path) -> None:
    with pytest.raises(StartupError, match="BROS_API_KEY"):
        check_exposure(web_settings(tmp_path, text_model, host="0.0.0.0"))
    check_exposure(web_settings(tmp_path, text_model, host="0.0.0.0", api_key=KEY))
    check_exposure(web_settings(tmp_path, text_model, host="0.0.0.0", insecure=True))
    check_exposure(web_settings(tmp_path, text_model))
