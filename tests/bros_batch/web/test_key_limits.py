"""The limits of keys: requests and tokens per minute for chat, unfinished jobs and rows for bulk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from sqlalchemy import Engine, select, update

from bros_batch.db.api_keys import KeyTerms, create_api_key
from bros_batch.db.connections import writing
from bros_batch.db.new_items import insert_items
from bros_batch.db.tables import items, jobs
from bros_batch.documents.new_item import NewItem
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import RunningEngine
from tests.services import RedisServer, wait_for

LINE = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}})


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory,
    text_model: Path,
    engine: RunningEngine,
    redis_of_session: RedisServer,
    own_database: Engine,
) -> Iterator[tuple[Web, Web]]:
    """Two web servers of the same service."""
    options = {
        "engine_url": engine.url,
        "redis_url": redis_of_session.url,
        "database_url": own_database.url.render_as_string(),
    }
    settings = web_settings(tmp_path_factory.mktemp("web"), text_model, **options)
    with serving(settings) as first, serving(settings) as second:
        yield first, second


def new_key(own_database: Engine, owner: str, **limits: int) -> str:
    with writing(own_database) as connection:
        return create_api_key(connection, owner, terms=KeyTerms(owner, **limits))[1]


def ask(client: OpenAI, stream: bool = False) -> None:
    answer = client.completions.create(model=MODEL_NAME, prompt="Hello", max_tokens=20, stream=stream)
    if stream:
        assert [chunk.choices for chunk in answer]


def test_requests_per_minute_hold_for_all_servers(servers: tuple[Web, Web], own_database: Engine) -> None:
    secret = new_key(own_database, "ann", requests_per_minute=4)
    first, second = (web.openai(secret) for web in servers)
    for client in (first, second, first, second):
        ask(client)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(second)
    assert "4 requests per minute" in caught.value.message
    headers = caught.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 15
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("4", "0")
    ask(servers[0].openai(new_key(own_database, "bob")))  # nobody else is limited


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_per_minute_count_outputs(
    servers: tuple[Web, Web], own_database: Engine, stream: bool
) -> None:
    secret = new_key(own_database, f"ann-{stream}", tokens_per_minute=10)
    client = servers[0].openai(secret)
    ask(client, stream)  # takes more than it has: the next one waits

    def is_over() -> openai.RateLimitError | None:
        try:
            ask(client, stream)
        except openai.RateLimitError as error:
            return error
        return None

    error = wait_for(is_over, "the limit")
    assert error is not None
    assert "10 tokens per minute" in error.message
    assert error.response.headers["x-ratelimit-remaining-tokens"] == "0"


def test_unfinished_jobs_and_rows_are_limited(servers: tuple[Web, Web], own_database: Engine) -> None:
    client = servers[0].openai(new_key(own_database, "carl", max_jobs=2, max_queued_items=10))

    def submit(rows: int) -> str:
        file = client.files.create(file=("a.jsonl", (LINE + "\n").encode() * rows), purpose="batch")
        made = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        return made.id

    with pytest.raises(openai.RateLimitError, match="Divide the file"):
        submit(11)
    first = submit(6)
    with pytest.raises(openai.RateLimitError, match="Its owner has 6, and this job has 5"):
        submit(5)
    submit(4)
    with pytest.raises(openai.RateLimitError, match="2 unfinished jobs") as caught:
        submit(1)
    assert caught.value.code == "too_many_jobs"
    assert int(caught.value.response.headers["retry-after"]) > 0
    with writing(own_database) as connection:
        connection.execute(update(jobs).where(jobs.c.id == first).values(status="completed"))
    submit(6)


def test_reruns_and_responses_in_the_background_count_as_unfinished_rows(
    servers: tuple[Web, Web], own_database: Engine
) -> None:
    client = servers[0].openai(new_key(own_database, "dora", max_jobs=1, max_queued_items=4))
    file = client.files.create(file=("a.jsonl", (f"{LINE}\n\r\n" * 3).encode()), purpose="batch")
    job = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h").id
    ask_later = {"model": MODEL_NAME, "input": "x", "background": True}
    client.responses.create(**ask_later)  # type: ignore[call-overload]  # the fourth row, since blank lines are none
    with pytest.raises(openai.RateLimitError, match="owner has 4, and this response has 1") as caught:
        client.responses.create(**ask_later)  # type: ignore[call-overload]
    assert caught.value.code == "too_many_queued_items"
    with writing(own_database) as connection:
        insert_items(connection, job, [NewItem(n, "a", LINE, "x", "failed") for n in (1, 2, 3)], 0.0)
        ended = {"status": "completed", "total": 3, "failed": 3, "ingest_line": 3, "ingest_form": "batch"}
        connection.execute(update(jobs).where(jobs.c.id == job).values(**ended))

    def rerun(rows: int) -> None:
        body = {"rows": list(range(1, rows + 1))} if rows < 3 else {"only": "failed"}
        client.post(f"/batches/{job}/rerun", body=body, cast_to=object)

    client.responses.create(**ask_later)  # type: ignore[call-overload]
    with pytest.raises(openai.RateLimitError, match="owner has 2, and this rerun has 3"):
        rerun(3)
    rerun(2)
    with writing(own_database) as connection:
        statuses = connection.scalars(
            select(items.c.status).where(items.c.job_id == job).order_by(items.c.line_no)
        )
        assert statuses.all() == ["pending", "pending", "failed"]
        connection.execute(update(jobs).where(jobs.c.owner == "dora").values(status="completed"))
    other = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    ).id
    with pytest.raises(openai.RateLimitError, match="1 unfinished jobs"):
        rerun(1)
    client.batches.cancel(other)


def test_responses_in_the_background_that_run_as_chats_count_as_requests(
    servers: tuple[Web, Web], own_database: Engine
) -> None:
    client = servers[0].openai(new_key(own_database, "emil", requests_per_minute=1))
    body: dict[str, Any] = {"model": MODEL_NAME, "input": "x", "background": True}
    client.responses.create(**body, service_tier="priority")
    with pytest.raises(openai.RateLimitError, match="1 requests per minute"):
        client.responses.create(**body, service_tier="priority")
    client.responses.create(**body)
