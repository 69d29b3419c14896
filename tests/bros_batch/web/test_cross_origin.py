"""Pages of other origins that the operator allows (CORS), and all others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bros_batch.settings import SettingsError
from bros_batch.up.preflight import StartupError, check_exposure
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import RunningEngine

ORIGIN = "https://chat.example"
EVIL = "https://evil.example"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
CROSS_SITE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}


@pytest.fixture(scope="module")
def open_to_chat(
    tmp_path_factory: pytest.TempPathFactory, text_model: Path, engine: RunningEngine
) -> Iterator[Web]:
    directory = tmp_path_factory.mktemp("cors")
    settings = web_settings(
        directory,
        text_model,
        engine_url=engine.url,
        api_key="k",
        allowed_origins=f"{ORIGIN}, http://localhost:3000",
    )
    with serving(settings) as web:
        yield web


def test_a_preflight_request_needs_no_key(open_to_chat: Web) -> None:
    with open_to_chat.http() as http:
        answer = http.options("/v1/chat/completions", headers={"Origin": ORIGIN, **PREFLIGHT, **CROSS_SITE})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in answer.headers
        other = http.options("/v1/chat/completions", headers={"Origin": EVIL, **PREFLIGHT})
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers
        assert set(other.json()["error"]) == {"message", "type", "param", "code"}


def test_a_page_of_an_allowed_origin_uses_the_api_with_a_key(open_to_chat: Web) -> None:
    headers = {"Origin": ORIGIN, **CROSS_SITE}
    body = {"model": MODEL_NAME, "prompt": "x", "max_tokens": 1}
    with open_to_chat.http(headers=headers) as http:
        rejected = http.post("/v1/completions", json=body)
        assert rejected.status_code == 401
        assert rejected.headers["access-control-allow-origin"] == ORIGIN  # the page can read the error
        answer = http.post("/v1/completions", json=body, headers={"Authorization": "Bearer k"})
        assert answer.status_code == 200
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        # The dashboard stays closed to it.
        http.post("/login", data={"key": "k"}, headers={"Sec-Fetch-Site": "same-origin"})
        assert http.post("/jobs/x/pause").json()["error"]["code"] == "cross_site_request"
        assert "access-control-allow-origin" not in http.get("/").headers


def test_a_page_of_another_origin_does_not(open_to_chat: Web) -> None:
    for origin in (EVIL, "null", "https://chat.example.evil.example", "http://chat.example", f"{ORIGIN}:444"):
        headers = {"Origin": origin, **CROSS_SITE, "Authorization": "Bearer k"}
        with open_to_chat.http(headers=headers) as http:
            answer = http.post("/v1/completions", json={})
            assert answer.json()["error"]["code"] == "cross_site_request"
            assert "access-control-allow-origin" not in answer.headers


def test_without_the_setting_nothing_is_allowed(web: Web) -> None:
    with web.http() as http:
        answer = http.options("/v1/chat/completions", headers={"Origin": ORIGIN, **PREFLIGHT})
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert "access-control-allow-origin" not in http.get("/v1/models", headers={"Origin": ORIGIN}).headers


def test_all_origins_are_allowed_with_a_key_only(tmp_path: Path, text_model: Path) -> None:
    with pytest.raises(StartupError, match="BROS_API_KEY"):
        check_exposure(web_settings(tmp_path, text_model, allowed_origins="*"))
    settings = web_settings(tmp_path, text_model, allowed_origins="*", api_key="k")
    check_exposure(settings)
    with serving(settings) as web, web.http(headers={"Origin": EVIL, **CROSS_SITE}) as http:
        answer = http.post("/v1/completions", json={}, headers={"Authorization": "Bearer k"})
        assert answer.status_code == 400
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "origin", ["chat.example", "https://chat.example/", "null", "https://Chat.example", "ftp://x"]
)
def test_what_is_not_an_origin_is_an_error_of_the_setting(
    tmp_path: Path, text_model: Path, origin: str
) -> None:
    with pytest.raises(SettingsError):
        web_settings(tmp_path, text_model, allowed_origins=origin)
