"""Redis and the database while they hang: requests end with a clear answer, and do not wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from bros_batch.db.connections import open_database
from bros_batch.db.schema import upgrade
from bros_batch.jobs.celery_app import QUEUE
from bros_batch.settings import Settings
from bros_batch.up.preflight import choose_port
from bros_batch.up.service_commands import environment, web_command
from bros_batch.web import app_state
from bros_batch.web.bounded_threads import BoundedThreads
from tests.bros_batch.web.serving import Web, serving, web_settings
from tests.services import PATIENCE_S, PostgresServer, RedisServer, processes, wait_for

LINE = b'{"id": "a", "text": "Hello"}\n'


def new_batch(web: Web) -> dict:
    with web.http() as http:
        file = http.post("/v1/files", files={"file": ("a.jsonl", LINE)}, data={"purpose": "batch"}).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return {**body, "defaults": {"prompt": "{text}"}}


def test_a_job_is_created_while_redis_is_frozen_and_its_task_follows(
    tmp_path: Path, text_model: Path, redis_server: RedisServer
) -> None:
    port = choose_port("127.0.0.1", 0)
    settings = web_settings(tmp_path / "data", text_model, redis_url=redis_server.url, port=port)
    upgrade(settings.resolved_database_url)
    with processes(environment(settings)) as group:
        group.start(web_command())
        web = Web(f"http://127.0.0.1:{port}", settings)
        wait_for(lambda: is_healthy(web), "the server")
        body = new_batch(web)
        os.kill(redis_server.process.pid, signal.SIGSTOP)
        try:
            with web.http() as http:
                # A request that waits for Redis gets no answer before this client gives up.
                created = http.post("/v1/batches", json=body, timeout=25)
                assert created.status_code == 200
                job = created.json()["id"]
                assert http.post(f"/v1/batches/{job}/cancel", timeout=25).status_code == 200
                ready = http.get("/ready")
                assert ready.status_code == 503
                assert "timeout" in ready.json()["redis"].lower()
        finally:
            os.kill(redis_server.process.pid, signal.SIGCONT)
        wait_for(lambda: redis_server.cli().llen(QUEUE) >= 2, "the tasks")


def is_healthy(web: Web) -> bool:
    with web.http() as http, contextlib.suppress(httpx.TransportError):
        return http.get("/health").status_code == 200
    return False


def test_requests_end_with_503_while_the_database_hangs_and_recover_with_it(
    tmp_path: Path,
    text_model: Path,
    postgres_of_session: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app_state, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(app_state, "WRITE_TIMEOUT_S", 0.5)
    url = postgres_of_session.create_database()
    settings: Settings = web_settings(tmp_path, text_model, database_url=url)
    try:
        with serving(settings) as web, web.http() as http:
            body = new_batch(web)
            blocker = open_database(url)
            with blocker.begin() as connection:
                connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
                # More requests than there are threads: each ends, and so does one that is not the first.
                with ThreadPoolExecutor(40) as pool:
                    answers = list(pool.map(lambda _: http.get("/v1/batches"), range(40)))
                assert {answer.status_code for answer in answers} == {503}
                assert answers[0].json()["error"]["code"] == "database_unavailable"
                assert http.post("/v1/batches", json=body).status_code == 503
                assert "not answered" in http.get("/ready").json()["database"]
                assert http.get("/", headers={"Accept": "text/html"}).status_code == 503
                assert http.get("/health").status_code == 200
            blocker.dispose()
            wait_for(lambda: http.get("/v1/batches").status_code == 200, "the database")
            assert http.get("/ready").json()["database"] == "ok"
    finally:
        postgres_of_session.drop_database(url)


async def test_the_end_waits_for_calls_whose_callers_have_stopped_waiting() -> None:
    threads = BoundedThreads(2, "ending")
    has_begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        has_begun.set()
        go_on.wait(PATIENCE_S)
        ended.set()

    caller = asyncio.create_task(threads.run(call, PATIENCE_S))
    await asyncio.to_thread(has_begun.wait, PATIENCE_S)
    caller.cancel()
    closing = asyncio.create_task(threads.close(PATIENCE_S))
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not closing.done()
    go_on.set()
    await closing
    assert ended.is_set()


async def test_calls_that_hang_hold_no_more_threads_than_there_are() -> None:
    threads = BoundedThreads(2, "hanging")
    go_on = threading.Event()
    try:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await threads.run(lambda: go_on.wait(PATIENCE_S), 0.05)
        assert len([each for each in threading.enumerate() if each.name.startswith("hanging")]) == 2
        go_on.set()
        assert await threads.run(lambda: "free", PATIENCE_S) == "free"
        assert await asyncio.gather(*(threads.run(time.monotonic, PATIENCE_S) for _ in range(20)))
    finally:
        go_on.set()
        await threads.close(PATIENCE_S)
