"""The webhook of a job through all services, which are killed in the middle of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import bros_batch
from bros_batch.client.bad_input import BadInput
from bros_batch.db.connections import open_database, writing
from bros_batch.up.service_commands import web_command
from tests.bros_batch.web.serving import MODEL_NAME, Web, whole_service
from tests.bros_batch.web.webhooks.receiver import SECRET, Receiver
from tests.services import Processes, RedisServer, wait_for

ROWS = [{"id": "1", "text": "a"}, {"id": "2", "text": "b"}]


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    receiver = Receiver()
    with receiver.serving() as url:
        yield receiver, f"{url}?token=hidden"


@pytest.fixture(scope="module")
def service(redis_of_session: RedisServer, text_model: Path) -> Iterator[tuple[Web, Processes]]:
    env = {"BROS_WEBHOOK_HOSTS": "127.0.0.1", "BROS_WEBHOOK_SECRET": SECRET}
    with whole_service(redis_of_session.url, text_model, **env) as started:
        yield started


def cli(web: Web, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "BROS_URL": web.url}
    rows = "".join(f'{{"id": "{row["id"]}", "text": "{row["text"]}"}}\n' for row in ROWS)
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.run(command, input=rows, capture_output=True, text=True, env=env, timeout=120)


def test_jobs_of_the_command_line_of_python_and_of_openai_tell_a_webhook(
    service: tuple[Web, Processes], receiver: tuple[Receiver, str]
) -> None:
    web, _ = service
    told, url = receiver
    submitted = cli(web, "submit", "-", "--prompt", "{text}", "--max-tokens", "2", "--notify", url)
    assert submitted.returncode == 0, submitted.stderr
    with bros_batch.Client(web.url) as client:
        job = client.submit(ROWS, "{text}", max_tokens=2, notify=url, progress=False)
        with pytest.raises(BadInput, match="begin with https://"):
            client.submit(ROWS, "{text}", notify="example.com", progress=False)
    body = {"model": MODEL_NAME, "prompt": "x", "max_tokens": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    with web.openai() as openai:
        file = openai.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = openai.batches.create(
            input_file_id=file.id,
            endpoint="/v1/completions",
            completion_window="24h",
            extra_body={"notify": url},
        )
        wait_for(lambda: len(told.calls) == 3, "the calls")
        assert openai.batches.retrieve(batch.id).status == "completed", "what it tells of is there"
    ids = (submitted.stdout.strip(), job.id, batch.id)
    assert sorted(told.events()) == sorted(("batch.completed", job_id) for job_id in ids)
    wrong = cli(web, "submit", "-", "--prompt", "{text}", "--notify", "ftp://example.com")
    assert (wrong.returncode, "must begin with https://" in wrong.stderr) == (2, True)
    private = cli(web, "submit", "-", "--prompt", "{text}", "--notify", "http://10.0.0.1/")
    assert (private.returncode, "BROS_WEBHOOK_HOSTS" in private.stderr) == (1, True), private.stderr


def test_the_death_of_web_and_worker_loses_no_call(
    service: tuple[Web, Processes], receiver: tuple[Receiver, str]
) -> None:
    web, group = service
    told, url = receiver
    told.may_answer.clear()
    with bros_batch.Client(web.url) as client:
        job = client.submit(ROWS, "{text}", max_tokens=2, notify=url, progress=False)
    wait_for(lambda: told.calls, "the first call")
    for process in group.started:
        if any(word in process.popen.args for word in ("bros_batch.web", "worker")):
            process.kill()
    told.may_answer.set()
    database = open_database(web.settings.resolved_database_url)
    with writing(database) as connection:
        assert connection.execute(text("UPDATE webhook_calls SET due_at = 0")).rowcount == 1, (
            "a minute passes"
        )
    database.dispose()
    group.worker()
    group.start(web_command())
    wait_for(lambda: len(told.calls) == 2, "the second call")
    assert told.ids[0] == told.ids[1]
    assert told.events() == [("batch.completed", job.id)] * 2

    def events() -> list[dict[str, Any]]:
        with web.http() as http:
            data: list[dict[str, Any]] = http.get(f"/v1/batches/{job.id}/events").json()["data"]
            return [event for event in data if event["kind"] == "webhook"]

    (event,) = wait_for(events, "the note of the call")
    assert event["status"] == 200
    assert event["url"] == url.partition("?")[0]
    log = cli(web, "log", job.id).stdout
    assert "was told: status 200" in log and "hidden" not in log
