"""Owners of keys: each sees only what its own keys have created, through every route."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, update

from bros_batch.db.api_keys import KeyTerms, create_api_key
from bros_batch.db.connections import open_database, writing
from bros_batch.db.new_items import insert_items
from bros_batch.db.schema import upgrade
from bros_batch.db.tables import jobs
from bros_batch.documents.new_item import NewItem
from bros_batch.web.app import create_app
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving_app, web_settings

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}
REST = {"row": "1", "change": "pause", "kind": "csv"}
IDS = ("batch_id", "job_id", "file_id", "response_id")


@dataclass(frozen=True)
class Owned:
    """A server with keys of two owners and of an administrator, and what the first of them has there."""

    web: Web
    routes: list[tuple[str, str]]
    secrets: dict[str, str]
    ids: dict[str, str]
    database: Engine

    def http(self, who: str, **headers: str) -> httpx.Client:
        return self.web.http(headers={"Authorization": f"Bearer {self.secrets[who]}", **headers})


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory, text_model: Path) -> Iterator[Owned]:
    settings = web_settings(tmp_path_factory.mktemp("owners"), text_model)
    upgrade(settings.resolved_database_url)
    database = open_database(settings.resolved_database_url)
    app = create_app(settings)
    with writing(database) as connection:
        secrets = {
            name: create_api_key(connection, name, terms=KeyTerms(owner))[1]
            for name, owner in (("ann", "ann"), ("ann's other key", "ann"), ("bob", "bob"), ("admin", ""))
        }
    routes = [
        (method, route.path)
        for route in app.state.routes
        for method in sorted(route.methods or ())
        if any(f"{{{name}}}" in route.path for name in IDS)
    ]
    with serving_app(app, settings) as web:
        owned = Owned(web, routes, secrets, {}, database)
        with owned.http("ann") as http:
            file = http.post(
                "/v1/files",
                data={"purpose": "batch"},
                files={"file": ("a.jsonl", json.dumps(LINE).encode() + b"\n")},
            ).json()["id"]
            batch = http.post(
                "/v1/batches",
                json={"input_file_id": file, "endpoint": "/v1/completions", "name": "of ann"},
            ).json()["id"]
            body = {"model": MODEL_NAME, "input": "x", "background": True, "temperature": 0}
            response = http.post("/v1/responses", json=body).json()["id"]
        with writing(database) as connection:
            insert_items(connection, batch, [NewItem(1, "a", json.dumps(LINE))], 0.0)
            change = update(jobs).where(jobs.c.id == batch)
            connection.execute(
                change.values(status="in_progress", total=1, ingest_line=1, ingest_form="batch")
            )
        owned.ids.update(batch_id=batch, job_id=batch, file_id=file, response_id=response)
        yield owned
    database.dispose()


def test_another_owners_things_do_not_exist_on_any_route(owned: Owned) -> None:
    assert len(owned.routes) > 25
    unknown = {name: re.sub("[0-9a-f]{12}$", "0" * 12, value) for name, value in owned.ids.items()}
    for method, path in owned.routes:
        for accept in ("application/json", "text/html", "application/x-ndjson"):
            body = {"json": {"only": "failed"}} if path.endswith("/rerun") else {}
            with owned.http("bob", Accept=accept) as http:
                answer = http.request(method, path.format(**owned.ids, **REST), **body)
                expected = http.request(method, path.format(**unknown, **REST), **body)
            what = (method, path, accept, answer.status_code, answer.text[:300])
            assert answer.status_code == expected.status_code == 404, what
            texts = [answer.text, expected.text]
            for name in IDS:
                texts[0] = texts[0].replace(owned.ids[name], unknown[name])
            assert texts[0] == texts[1], what


@pytest.mark.parametrize("who", ["ann", "ann's other key", "admin"])
def test_the_owner_and_an_administrator_see_them(owned: Owned, who: str) -> None:
    reads = [path for method, path in owned.routes if method == "GET"]
    assert len(reads) > 8
    with owned.http(who, Accept="text/html") as http:
        for path in reads:
            answer = http.get(path.format(**owned.ids, **REST))
            assert answer.status_code == 200, (path, answer.text[:300])
        assert owned.ids["job_id"] in http.get("/").text
        for name, path in (("batch_id", "/v1/batches"), ("file_id", "/v1/files")):
            assert [each["id"] for each in http.get(path).json()["data"]] == [owned.ids[name]]


def test_lists_and_bodies_of_others_do_not_reach_them(owned: Owned) -> None:
    batch, file, response = (owned.ids[name] for name in ("batch_id", "file_id", "response_id"))
    with owned.http("bob") as http:
        for path in ("/v1/batches", "/v1/files"):
            assert http.get(path).json()["data"] == []
            cursor = batch if path.endswith("batches") else file
            assert http.get(path, params={"after": cursor}).status_code == 404
        for query in ("", "?search=of+ann", f"?after={batch}", "?status=in_progress"):
            page = http.get(f"/{query}", headers={"Accept": "text/html"}).text
            assert batch not in page
        made = {"input_file_id": file, "endpoint": "/v1/completions"}
        assert http.post("/v1/batches", json=made).status_code == 404
        assert http.post("/v1/batches/import", json={"input_file_id": file}).status_code == 404
        continued = {"model": MODEL_NAME, "input": "x", "previous_response_id": response}
        assert (
            http.post("/v1/responses", json=continued).json()["error"]["code"]
            == "previous_response_not_found"
        )
        draft = {"file": file, "prompt": "{{prompt}}", "source": {}}
        for path, body in (
            ("/new/preview", draft), ("/new/start", draft),
            ("/new/try", {"job": draft, "row": 1}), ("/new/forecast", {"job": draft, "rows": 1}),
        ):  # fmt: skip
            answer = http.post(path, json=body)
            assert (answer.status_code, "is gone" in answer.text) == (400, True), (path, answer.text)
        named = http.post("/jobs", json={"change": "cancel", "jobs": [batch]}).json()
        assert [each["id"] for each in named["refused"]] == [batch]
        assert http.post("/jobs", json={"change": "cancel", "search": "of ann"}).json()["changed"] == 0
    with owned.http("ann") as http:
        assert http.get(f"/v1/batches/{batch}").json()["status"] == "in_progress"


def test_owners_may_use_the_same_idempotency_key(owned: Owned) -> None:
    """Even with the same body, each gets a job of its own."""
    made = []
    for who in ("ann", "bob"):
        with owned.http(who, **{"Idempotency-Key": "the same"}) as http:
            content = json.dumps(LINE).encode() + b"\n"
            file = http.post(
                "/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", content)}
            ).json()["id"]
            body = {"input_file_id": file, "endpoint": "/v1/completions"}
            answers = [http.post("/v1/batches", json=body).json()["id"] for _ in range(2)]
            assert answers[0] == answers[1]
            assert http.get(f"/v1/batches/{answers[0]}").status_code == 200
            made.append(answers[0])
    assert made[0] != made[1]
