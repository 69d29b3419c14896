"""What `up` and `doctor` make of the answers of a web server that needs a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bros_batch.settings import Settings
from bros_batch.up.doctor import Finding, Health, examine
from bros_batch.up.probes import WebProbe, auth_headers
from tests.bros_batch.web.serving import Web, serving, web_settings

KEY = "sk-of-this-server"


@pytest.fixture
def guarded(tmp_path: Path, text_model: Path) -> Iterator[Web]:
    """A server that needs a key, and has no engine."""
    with serving(web_settings(tmp_path, text_model, api_key=KEY)) as web:
        yield web


@pytest.mark.parametrize("key", [None, "sk-of-another-server"])
async def test_a_server_that_needs_another_key_says_what_is_not_ready_and_not_why(
    guarded: Web, key: str | None
) -> None:
    async with httpx.AsyncClient(headers=auth_headers(key), trust_env=False) as http:
        probe = WebProbe(http, guarded.url)
        assert not await probe.is_ready()
        assert probe.problems["engine"] == "not ready"
        assert set(probe.problems.values()) == {"not ready"}


async def test_a_rejection_is_never_ready() -> None:
    rejecting = httpx.MockTransport(lambda request: httpx.Response(401, json={"error": {}}))
    async with httpx.AsyncClient(transport=rejecting) as http:
        probe = WebProbe(http, "http://server")
        assert not await probe.is_ready()
        assert probe.problems.keys() == {"web"}


async def test_a_server_says_with_its_key_what_is_missing(guarded: Web) -> None:
    async with httpx.AsyncClient(headers=auth_headers(KEY), trust_env=False) as http:
        probe = WebProbe(http, guarded.url)
        assert not await probe.is_ready()
        assert "engine" in probe.problems


def web_finding(web: Web, monkeypatch: pytest.MonkeyPatch, key: str | None) -> Finding:
    monkeypatch.setenv("BROS_URL", web.url)
    settings: Settings = web.settings.model_copy(update={"api_key": key})
    return next(finding for finding in examine(settings) if finding.name == "web")


def test_the_doctor_sends_the_key(guarded: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = web_finding(guarded, monkeypatch, KEY)
    assert (finding.health, finding.detail) == (Health.BROKEN, f"{guarded.url} is not ready")
    assert "engine: " in finding.fix


def test_the_doctor_without_a_key_says_what_is_not_ready(
    guarded: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = web_finding(guarded, monkeypatch, None)
    assert (finding.health, finding.detail) == (Health.BROKEN, f"{guarded.url} is not ready")
    assert "engine: not ready" in finding.fix
