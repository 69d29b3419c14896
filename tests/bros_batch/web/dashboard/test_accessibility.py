"""axe-core finds nothing to complain about on any page, light or dark."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, update

from bros_batch.db import jobs, tables
from bros_batch.db.connections import open_database, writing
from bros_batch.db.states import JobStatus
from tests.bros_batch.web.browser import browser
from tests.bros_batch.web.dashboard.test_rows import item
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.services import unavailable, wait_for

RUN = """
const done = arguments[arguments.length - 1];
axe.run().then(({ violations, passes }) => done([passes.length, violations.map(
  ({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html.slice(0, 150)} ${node.failureSummary}`).join(" | ")}`
)]));
"""
OPEN_ALL = """
for (const each of document.querySelectorAll("details")) each.open = true;
for (const each of document.querySelectorAll("#stale, #toast, #bulk, #job, #table, #reading")) each.hidden = false;
for (const each of document.querySelectorAll("#stale, #toast")) each.textContent = "words";
"""


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, which a package of the extra `test` carries."""
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None or not spec.submodule_search_locations:
        unavailable("axe-core (no package axe-core-python)")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, text_model: Any, engine: Any) -> Iterator[Web]:
    """A server with a job in each status. The one in progress has rows."""
    with serving(web_settings(tmp_path_factory.mktemp("axe"), text_model, engine_url=engine.url)) as web:
        database = open_database(web.settings.resolved_database_url)
        with writing(database) as connection:
            for status in JobStatus:
                job = jobs.create_job(
                    connection,
                    job_id=f"batch_{status}",
                    input_file_id="file-x",
                    endpoint="/v1/chat/completions",
                    model=MODEL_NAME,
                    defaults={"prompt": "Read this: {text}"},
                )
                counts = {
                    "total": 20,
                    "succeeded": 5,
                    "failed": 1,
                    "ingest_line": 20,
                    "ingest_form": "document",
                }
                connection.execute(
                    update(tables.jobs).where(tables.jobs.c.id == job.id).values(status=status, **counts)
                )
            connection.execute(insert(tables.items), [item("batch_in_progress", row) for row in range(1, 21)])
        database.dispose()
        yield web


@pytest.mark.parametrize("dark", [False, True])
def test_no_page_has_a_finding(site: Web, axe: str, dark: bool) -> None:
    rows = "/jobs/batch_in_progress"
    findings = []
    with browser(dark=dark) as chrome:
        for path in (
            "/",
            "/?search=nothing",
            rows,
            f"{rows}/rows/1",
            f"{rows}/rows/3",
            "/engine",
            "/chat",
            "/new",
            "/nowhere",
        ):
            chrome.get(site.url + path)
            if path == rows:
                wait_for(
                    lambda: chrome.execute_script("return document.querySelector('tr.row .badge')"), "rows"
                )  # type: ignore[no-untyped-call]
            chrome.execute_script(OPEN_ALL)  # type: ignore[no-untyped-call]
            chrome.execute_script(axe)  # type: ignore[no-untyped-call]
            passed, found = chrome.execute_async_script(RUN)  # type: ignore[no-untyped-call]
            assert passed > 10
            findings += [f"{path}: {each}" for each in found]
    assert not findings, "\n".join(findings)
