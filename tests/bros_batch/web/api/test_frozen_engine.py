"""An engine process that is frozen: the web process notices, says so, and ends the chats that wait for it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bros_batch.web import engine_link
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.services import PATIENCE_S, Process, RedisServer, processes, wait_for

CHAT = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


@pytest.fixture
def frozen(
    tmp_path: Path, text_model: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Web, Process]]:
    """A server and its engine process, which a test may stop and continue."""
    monkeypatch.setattr(engine_link, "PROBE_INTERVAL_S", 0.2)
    with processes() as group:
        url = f"unix://{group.directory / 'engine.sock'}"
        flags = ["--runner", "simulated", "--simulated-step-s", "0.02", "--listen", url]
        flags += ["--model", str(text_model), "--served-model-name", MODEL_NAME]
        engine = group.start([sys.executable, "-m", "engine", *flags])
        settings = web_settings(tmp_path, text_model, engine_url=url, redis_url=redis_server.url)
        with serving(settings) as web:
            try:
                wait_for(lambda: is_ready(web), "readiness")
                yield web, engine
            finally:
                os.kill(engine.pid, signal.SIGCONT)


def is_ready(web: Web) -> bool:
    with web.http() as http:
        return http.get("/ready").status_code == 200


def test_a_frozen_engine_is_not_ready_and_gets_no_chats_until_it_continues(
    frozen: tuple[Web, Process],
) -> None:
    web, engine = frozen
    os.kill(engine.pid, signal.SIGSTOP)
    with web.http() as http:
        wait_for(lambda: not is_ready(web), "the end of readiness")
        answer = http.get("/ready")
        assert answer.status_code == 503
        assert "not answered for" in answer.json()["engine"] or "no answer within" in answer.json()["engine"]
        assert (answer.json()["redis"], answer.json()["database"]) == ("ok", "ok")
        rejected = http.post("/v1/chat/completions", json=CHAT)
        assert rejected.status_code == 503
        assert rejected.json()["error"]["code"] == "engine_unavailable"
        assert int(rejected.headers["retry-after"]) >= 1
        page = http.get("/engine", headers={"Accept": "text/html"})
        assert page.status_code == 503
        os.kill(engine.pid, signal.SIGCONT)
        wait_for(lambda: is_ready(web), "readiness")
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_chat_under_way_ends_with_an_error_event_when_the_engine_freezes(
    frozen: tuple[Web, Process],
) -> None:
    web, engine = frozen
    lines: list[str] = []
    begun = threading.Event()

    def ask() -> None:
        body = {**CHAT, "max_tokens": 1000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{web.url}/v1/chat/completions", json=body, timeout=PATIENCE_S) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                begun.set()

    asker = threading.Thread(target=ask)
    asker.start()
    assert begun.wait(PATIENCE_S)
    os.kill(engine.pid, signal.SIGSTOP)
    asker.join(PATIENCE_S)
    assert not asker.is_alive()
    last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_unavailable"


def test_a_short_pause_of_the_engine_ends_no_chat(
    frozen: tuple[Web, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The web process counts silent intervals; below the limit a chat just goes on."""
    web, engine = frozen
    monkeypatch.setattr(engine_link, "LOST_PROBES", 10**6)
    with httpx.stream(
        "POST",
        f"{web.url}/v1/chat/completions",
        json={**CHAT, "max_tokens": 300, "ignore_eos": True, "stream": True},
        timeout=PATIENCE_S,
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(engine.pid, signal.SIGSTOP)
        wait_for(lambda: not is_ready(web), "the end of readiness")
        os.kill(engine.pid, signal.SIGCONT)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    wait_for(lambda: is_ready(web), "readiness")
