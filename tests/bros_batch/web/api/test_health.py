"""Health checks and the version."""

from __future__ import annotations

from tests.bros_batch.web.serving import Web


def test_ready_names_what_is_missing(web: Web) -> None:
    with web.http() as http:
        answer = http.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["status"] == "not ready"
    assert (answer.json()["database"], answer.json()["engine"]) == ("ok", "ok")
    assert "redis" in answer.json()["redis"].lower()


def test_version(web: Web) -> None:
    with web.http() as http:
        assert set(http.get("/version").json()) == {"version"}
