"""Batches: the object, lists, changes, and a complete run with the unmodified `openai` client."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import Engine

from bros_batch.db import jobs, tables
from bros_batch.db.connections import open_database, writing
from bros_batch.db.job_control import set_status
from bros_batch.db.states import JobStatus
from bros_batch.db.table_rows import Job
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings, whole_service
from tests.services import RedisServer, wait_for

CHAT: Any = "/v1/chat/completions"
FIELDS = {
    "id", "object", "endpoint", "errors", "input_file_id", "completion_window", "status", "output_file_id",
    "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at",
    "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage", "metadata", "model",
}  # fmt: skip


@pytest.fixture
def database(web: Web) -> Iterator[Engine]:
    engine = open_database(web.settings.resolved_database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def input_file(client: OpenAI) -> str:
    return client.files.create(file=("in.jsonl", io.BytesIO(b"{}\n")), purpose="batch").id


def create(client: OpenAI, input_file: str, **extra: Any) -> openai.types.Batch:
    return client.batches.create(
        input_file_id=input_file, endpoint=CHAT, completion_window="24h", extra_body=extra or None
    )


def put_into(database: Engine, job_id: str, *path: JobStatus) -> Job:
    with writing(database) as connection:
        job = jobs.get_job(connection, job_id)
        assert job is not None
        for status in path:
            job = set_status(connection, job, status)
    return job


def test_the_object_has_every_field(web: Web, client: OpenAI, input_file: str) -> None:
    with web.http() as http:
        body = {
            "input_file_id": input_file,
            "endpoint": CHAT,
            "completion_window": "24h",
            "metadata": {"a": "b"},
        }
        created = http.post("/v1/batches", json=body).json()
    assert set(created) >= FIELDS
    unset = {name for name in FIELDS if created[name] is None}
    assert unset == {
        "errors", "output_file_id", "error_file_id", "in_progress_at", "finalizing_at", "completed_at", "failed_at",
        "expired_at", "cancelling_at", "cancelled_at",
    }  # fmt: skip
    assert (created["object"], created["status"], created["model"]) == ("batch", "validating", MODEL_NAME)
    assert created["expires_at"] == created["created_at"] + 24 * 3600
    assert created["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert created["usage"]["total_tokens"] == 0
    assert client.batches.retrieve(created["id"]).model_dump() == openai.types.Batch(**created).model_dump()


def test_our_own_fields(client: OpenAI, input_file: str) -> None:
    defaults = {"prompt": "Sum {text}", "system": "Be brief", "max_tokens": 5, "temperature": 0}
    batch = create(client, input_file, name="n", priority=3, deadline="6h", defaults=defaults)
    own = batch.model_dump()
    assert (own["name"], own["priority"]) == ("n", 3)
    assert own["deadline_at"] == pytest.approx(time.time() + 6 * 3600, abs=10)
    assert own["expires_at"] == own["deadline_at"]
    at = create(client, input_file, deadline=int(time.time()) + 500).model_dump()
    assert at["deadline_at"] == pytest.approx(time.time() + 500, abs=10)
    window = client.batches.create(input_file_id=input_file, endpoint=CHAT, completion_window="90m")  # type: ignore[arg-type]
    assert window.expires_at == pytest.approx(window.created_at + 5400, abs=1)


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input_file_id": "file-0"}, 404, "input_file_id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"endpoint": "/v1/audio/speech"}, 400, "endpoint"),
        ({"completion_window": "soon"}, 400, "completion_window"),
        ({"completion_window": "0h"}, 400, "completion_window"),
        ({"deadline": "1999-01-01T00:00:00Z"}, 400, "deadline"),
        ({"deadline": "2099-01-01T00:00:00"}, 400, "deadline"),
        ({"priority": "high"}, 400, "priority"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"metadata": {"a" * 65: "x"}}, 400, None),
        ({"defaults": {"temperature": 9}}, 400, "defaults.temperature"),
        ({"defaults": {"stream": True}}, 400, "defaults.stream"),
        ({"defaults": {"typo": 1}}, 400, "defaults.typo"),
        ({"defaults": {"prompt": 5}}, 400, "defaults.prompt"),
        ({"defaults": {"model": "other"}}, 404, "defaults.model"),
    ],
)
def test_invalid_parameters_are_named(
    web: Web, input_file: str, change: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"input_file_id": input_file, "endpoint": CHAT, "completion_window": "24h", **change}
    with web.http() as http:
        answer = http.post("/v1/batches", json=body)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.status_code == status, error
    if param is not None:
        assert error["param"] == param
        assert param in error["message"] or error["code"] in ("not_found", "model_not_found")


def test_lines_may_have_what_a_document_would_need_of_the_defaults(web: Web, input_file: str) -> None:
    body = {"input_file_id": input_file, "endpoint": "/v1/decisions", "completion_window": "24h"}
    with web.http() as http:
        without, of_lines = (http.post("/v1/batches", json={**body, **own}) for own in ({}, {"defaults": {}}))
        of_documents = http.post("/v1/batches", json={**body, "defaults": {"prompt": "Judge {text}"}})
    assert (without.status_code, of_lines.status_code) == (200, 200)
    assert of_documents.status_code == 400
    assert of_documents.json()["error"]["param"] == "defaults.questions"


def test_lists_are_paged(tmp_path: Path, text_model: Path, database_url: str) -> None:
    with (
        serving(web_settings(tmp_path, text_model, database_url=database_url)) as web,
        web.openai() as client,
    ):
        input_file = client.files.create(file=("a", b"{}"), purpose="batch").id
        ids = [create(client, input_file, name=f"job {number}").id for number in range(5)]
        assert [batch.id for batch in client.batches.list(limit=2)] == ids[::-1]
        page = client.batches.list(limit=2, after=ids[3])
        assert ([batch.id for batch in page.data], page.has_more) == ([ids[2], ids[1]], True)
        assert (page.model_dump()["first_id"], page.model_dump()["last_id"]) == (ids[2], ids[1])
        assert [batch.id for batch in client.batches.list(extra_query={"search": "job 3"})] == [ids[3]]
        assert list(client.batches.list(extra_query={"status": "completed"})) == []
        with pytest.raises(openai.BadRequestError) as caught:
            client.batches.list(extra_query={"status": "asleep"})
        assert caught.value.param == "status"
        with pytest.raises(openai.BadRequestError) as caught:
            client.batches.list(limit=101)
        assert caught.value.param == "limit"


def test_allowed_and_illegal_changes(web: Web, client: OpenAI, database: Engine, input_file: str) -> None:
    job_id = create(client, input_file).id
    put_into(database, job_id, JobStatus.IN_PROGRESS)
    with web.http() as http:

        def post(change: str) -> tuple[int, str]:
            answer = http.post(f"/v1/batches/{job_id}/{change}")
            body = answer.json()
            return answer.status_code, body["status"] if answer.is_success else body["error"]["code"]

        assert post("pause") == (200, "paused")
        assert post("resume") == (200, "in_progress")
        assert post("cancel") == (200, "cancelling")
        assert post("cancel") == (200, "cancelling")
        assert post("pause") == (409, "illegal_transition")
        assert http.post("/v1/batches/batch_0/cancel").status_code == 404
        assert http.get("/v1/batches/batch_0").json()["error"]["param"] == "batch_id"


def test_errors_of_the_input_file_are_reported(client: OpenAI, database: Engine, input_file: str) -> None:
    from sqlalchemy import update

    job_id = create(client, input_file).id
    problem = {"code": "invalid_request", "line": 3, "message": "no JSON", "param": None}
    with writing(database) as connection:
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job_id).values(errors=[problem]))
    errors = client.batches.retrieve(job_id).errors
    assert errors is not None
    assert errors.object == "list"
    assert errors.data is not None
    assert errors.data[0].model_dump() == problem


def lines(count: int) -> bytes:
    def line(number: int) -> dict[str, Any]:
        body = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": f"Document {number}"}],
            "max_tokens": 8,
        }
        return {"custom_id": f"doc-{number}", "method": "POST", "url": CHAT, "body": body}

    return "".join(json.dumps(line(number)) + "\n" for number in range(count)).encode()


def test_a_batch_from_upload_to_results(redis_server: RedisServer, text_model: Path) -> None:
    """Files, batch, progress, results and errors, as in a program written for OpenAI."""
    with whole_service(redis_server.url, text_model) as (web, group), web.openai() as client:
        content = (
            lines(60) + b'{"custom_id": "bad", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n'
        )
        file = client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        batch = wait_for(lambda: ended(client, batch.id), "the batch")
        assert batch.status == "completed", [process.output()[-2000:] for process in group.started]
        assert batch.request_counts is not None
        assert batch.request_counts.model_dump() == {"total": 61, "completed": 60, "failed": 1}
        assert batch.output_file_id is not None
        assert batch.error_file_id is not None
        assert batch.usage is not None
        assert batch.usage.output_tokens > 0
        output = client.files.content(batch.output_file_id).text.splitlines()
        results = [json.loads(line) for line in output]
        assert [result["custom_id"] for result in results] == [f"doc-{number}" for number in range(60)]
        assert all(result["response"]["body"]["object"] == "chat.completion" for result in results)
        bad = json.loads(client.files.content(batch.error_file_id).text)
        assert bad["error"]["code"] == "invalid_request"
        assert "line 61" in bad["error"]["message"].lower()
        with web.http() as http:
            streamed = http.get(f"/v1/batches/{batch.id}/results").text
            assert streamed.splitlines() == output
            failed = http.get(f"/v1/batches/{batch.id}/results", params={"status": "failed"}).text
            assert json.loads(failed) == bad
            rest = http.get(f"/v1/batches/{batch.id}/results", params={"after_line": 58}).text.splitlines()
            assert rest == output[58:]
            metrics = http.get("/metrics").text
        assert 'bros_items_total{status="succeeded"} 60.0' in metrics


def ended(client: OpenAI, batch_id: str) -> openai.types.Batch | None:
    batch = client.batches.retrieve(batch_id)
    return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None


OLD_CLIENT = """
import io, sys, time
import openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
assert openai.__version__.startswith("1."), openai.__version__
answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=4)
assert answer.choices[0].finish_reason == "length" or answer.usage.completion_tokens <= 4
stream = client.chat.completions.create(
    model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=4, stream=True,
    stream_options={"include_usage": True})
assert list(stream)[-1].usage.completion_tokens <= 4
try:
    client.chat.completions.create(model="tiny", messages=[], max_tokens=4)
except openai.BadRequestError as error:
    assert error.param == "messages"
file = client.files.create(file=("in.jsonl", io.BytesIO(b"{}")), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
assert batch.status == "validating"
assert [each.id for each in client.batches.list(limit=1)][0] == batch.id
assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
print("ok")
"""


@pytest.mark.slow
def test_the_first_major_version_of_the_openai_client(web: Web, tmp_path: Path) -> None:
    # Its dependencies are those of the client that is installed here.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    installed = subprocess.run(
        [*pip, "--target", tmp_path, "openai<2", "distro"], capture_output=True, text=True
    )
    if installed.returncode != 0:
        pytest.skip("openai<2 cannot be installed here")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", OLD_CLIENT, web.url], capture_output=True, text=True, env=env
    )
    assert done.stdout.strip() == "ok", done.stderr
