"""`notify` of a new job: where its webhook comes from, and what is said about a URL that cannot be called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, select

from bros_batch.db.api_keys import KeyTerms, create_api_key
from bros_batch.db.connections import reading, writing
from bros_batch.db.tables import jobs
from bros_batch.web.app import create_app
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving_app, web_settings

CHAT = "/v1/chat/completions"
KEY_URL = "https://hooks.invalid/of-the-key"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, text_model: Path, own_database: Engine) -> Iterator[Web]:
    options: dict[str, Any] = {
        "database_url": own_database.url.render_as_string(),
        "webhook_url": "http://127.0.0.1:9/hook",
        "webhook_hosts": ["public", "10.1.0.0/16"],
        "api_key": "bros-admin",
    }
    settings = web_settings(tmp_path_factory.mktemp("web"), text_model, **options)
    with serving_app(create_app(settings), settings) as web:
        yield web


def create(web: Web, secret: str, **body: Any) -> httpx.Response:
    with web.http(headers={"Authorization": f"Bearer {secret}"}) as http:
        file = http.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", b'{"text": "a"}\n')}
        ).json()["id"]
        return http.post("/v1/batches", json={"input_file_id": file, "endpoint": CHAT, **body})


def target(own_database: Engine, job_id: str) -> tuple[str | None, str | None]:
    with reading(own_database) as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
    return row.notify_url, row.notify_key_id


def test_the_job_goes_before_the_key_and_the_key_before_the_server(web: Web, own_database: Engine) -> None:
    with writing(own_database) as connection:
        with_url, secret = create_api_key(connection, "ann", terms=KeyTerms("ann", notify_url=KEY_URL))
        without, other = create_api_key(connection, "bob", terms=KeyTerms("bob"))
    own = create(web, secret, notify="http://10.1.2.3/hook?token=hidden").json()
    assert own["notify"] == "http://10.1.2.3/hook"
    assert target(own_database, own["id"]) == ("http://10.1.2.3/hook?token=hidden", with_url.id)
    of_key = create(web, secret).json()
    assert of_key["notify"] == KEY_URL
    assert target(own_database, of_key["id"]) == (KEY_URL, with_url.id)
    of_server = create(web, other).json()
    assert of_server["notify"] is None, "the server's URL is the operator's"
    assert target(own_database, of_server["id"]) == ("", without.id)
    with web.http(headers={"Authorization": f"Bearer {secret}"}) as http:
        body = {"model": MODEL_NAME, "input": "x", "background": True}
        assert http.post("/v1/responses", json=body).status_code == 200
    with reading(own_database) as connection:
        query = select(jobs.c.notify_url).where(jobs.c.input_file_id == "", jobs.c.owner == "ann")
        assert connection.scalars(query).all() == [KEY_URL]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hooks.example.com", "begin with https://"),
        (
            "http://127.0.0.1:8000/",
            "which webhooks may not call: an operator can allow it with BROS_WEBHOOK_HOSTS",
        ),
        ("http://169.254.169.254/latest/meta-data", "which webhooks may not call"),
        ("http://[::ffff:10.2.0.1]/", "which webhooks may not call"),
        ("", "begin with https://"),
        (17, "text"),
    ],
)
def test_a_url_that_cannot_be_called_is_refused_with_the_reason(web: Web, url: object, message: str) -> None:
    answer = create(web, "bros-admin", notify=url)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "notify"), error
    assert message in error["message"] or url == 17, error


def test_a_job_is_judged_before_its_file_is_sent(web: Web) -> None:
    with web.http(headers={"Authorization": "Bearer bros-admin"}) as http:

        def check(**body: Any) -> httpx.Response:
            return http.post("/v1/batches/check", json={"endpoint": CHAT, **body})

        before = http.get("/v1/batches").json()["data"]
        assert check(notify="http://10.1.2.3/hook").json() == {"object": "batch.check", "model": MODEL_NAME}
        for body, message in (
            ({"notify": "http://127.0.0.1:8000/"}, "which webhooks may not call"),
            ({"defaults": {"model": "other"}}, "other"),
            ({"deadline": "yesterday"}, "deadline"),
        ):
            refused = check(**body)
            assert refused.status_code in (400, 404), refused.text
            assert message in refused.json()["error"]["message"]
        assert http.get("/v1/batches").json()["data"] == before
