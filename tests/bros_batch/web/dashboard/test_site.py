"""What holds for every page: headers, status codes, streams that end, contrast, and the way home."""

from __future__ import annotations

import gc
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from bros_batch.db import jobs, tables
from bros_batch.db.connections import open_database, writing
from bros_batch.db.states import JobStatus
from tests.bros_batch.web.browser import browser
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.services import wait_for

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
EVENTS = {"Accept": "text/event-stream"}
KEY = "sk-site-key"
# Texts whose contrast with what is behind them is under WCAG's 4.5 for normal text.
FAINT_TEXTS = """
const channels = (color) => color.match(/[\\d.]+/g).map(Number);
const luminance = (color) => {
  const [r, g, b] = channels(color).slice(0, 3).map((each) => {
    const part = each / 255;
    return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const color = getComputedStyle(each).backgroundColor;
    if ((channels(color)[3] ?? 1) > 0) return color;
  }
  return "rgb(255, 255, 255)";
};
const faint = [];
let seen = 0;
for (const element of document.querySelectorAll("body *")) {
  const text = [...element.childNodes].filter((each) => each.nodeType === 3 && each.data.trim());
  if (!text.length || !element.checkVisibility() || element.closest("svg, option, noscript")) continue;
  seen += 1;
  const [low, high] = [luminance(getComputedStyle(element).color), luminance(ground(element))].sort((a, b) => a - b);
  const ratio = (high + 0.05) / (low + 0.05);
  if (ratio < 4.5) faint.push(`${element.outerHTML.slice(0, 80)}: ${ratio.toFixed(2)}`);
}
return [seen, faint];
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, text_model: Path, engine: Any) -> Iterator[Web]:
    """A server with an engine and one job in each status, which no worker changes."""
    settings = web_settings(tmp_path_factory.mktemp("site"), text_model, engine_url=engine.url)
    with serving(settings) as web:
        for status in JobStatus:
            add_job(web, status)
        yield web


def add_job(web: Web, status: JobStatus, **values: Any) -> str:
    database = open_database(web.settings.resolved_database_url)
    with writing(database) as connection:
        job = jobs.create_job(
            connection, input_file_id="file-x", endpoint="/v1/completions", model=MODEL_NAME, name=status
        )
        counts = {"total": 10, "succeeded": 5, "failed": 2, "expired": 1, **values}
        connection.execute(
            update(tables.jobs).where(tables.jobs.c.id == job.id).values(status=status, **counts)
        )
    database.dispose()
    return job.id


def test_every_page_has_a_strict_policy_and_no_inline_code(site: Web) -> None:
    job_id = add_job(site, JobStatus.PAUSED)
    with site.http(headers=HTML) as http:
        for path in ("/", f"/jobs/{job_id}", "/engine", "/chat", "/new", "/jobs/none", "/nowhere"):
            answer = http.get(path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.text.count("<script") == 1
            assert "<style" not in answer.text
            assert " style=" not in answer.text
            assert "://" not in answer.text.replace("http://www.w3.org", "").replace("://example.com", "")
            assert '<html lang="en">' in answer.text
            assert answer.text.count("<h1>") == 1
            assert "Macro" not in answer.text  # printed where a page names one like a value of its layout


def test_pages_and_files_are_compressed_and_files_are_kept(site: Web) -> None:
    with site.http(headers={"Accept-Encoding": "gzip", **HTML}) as http:
        page = http.get("/")
        assert page.headers["content-encoding"] == "gzip"
        assert page.headers["cache-control"] == "no-store"
        files = re.findall(r"/static/(\w{12})/([\w.]+)", page.text)
        assert {"style.css", "jobs.js", "icon.svg"} <= {name for _, name in files}
        (version,) = {version for version, _ in files}
        for name in ("style.css", "jobs.js", "morph.js", "icon.svg"):
            answer = http.get(f"/static/{version}/{name}")
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
        old = http.get("/static/0123456789ab/page.js")
        assert (old.status_code, old.headers["cache-control"]) == (200, "no-store")
        for name in ("nothing.js", "..%2fsite.py", "%2e%2e/site.py"):
            assert http.get(f"/static/{version}/{name}").status_code == 404


def test_unknown_pages_lead_home(site: Web) -> None:
    with site.http() as http:
        page = http.get("/nowhere", headers=HTML)
        assert page.status_code == 404
        assert "Page not found" in page.text
        assert 'href="/"' in page.text
        assert http.get("/jobs/none", headers=HTML).status_code == 404
        assert http.get("/nowhere").json()["error"]["code"] == "not_found"
        assert http.get("/v1/nowhere", headers=HTML).json()["error"]["code"] == "not_found"
        wrong = http.post("/engine", headers=HTML)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")


def events(response: httpx.Response, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in response.iter_lines():
        if line:
            found.append(json.loads(line.removeprefix("data: ")))
        if len(found) == count:
            break
    return found


def test_a_page_streams_what_changes(site: Web) -> None:
    job_id = add_job(site, JobStatus.PAUSED)
    with site.http(headers=EVENTS) as http, http.stream("GET", f"/jobs/{job_id}") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["content-encoding"] == "gzip"
        (first,) = events(response, 1)
    parts = {"heading", "actions", "progress", "row_states", "rows_state", "details"}
    assert set(first["fragments"]) == {"engine_state", *parts}
    assert first["problem"] is None
    headers = {**EVENTS, "Accept-Encoding": "identity"}
    with site.http(headers=headers) as http, http.stream("GET", "/chat") as response:
        first, second = events(response, 2)
    assert "engine up" in first["fragments"]["engine_state"]
    assert second == {"fragments": {}, "problem": None}


def test_each_event_arrives_at_once_although_it_is_compressed(site: Web) -> None:
    with site.http(headers=EVENTS) as http, http.stream("GET", "/chat") as response:
        raw = next(response.iter_raw())
        decompressor = gzip.zlib.decompressobj(31)  # type: ignore[attr-defined]
        assert decompressor.decompress(raw).endswith(b"\n\n")


def open_streams() -> int:
    """The number of pages' event streams in this process."""
    gc.collect()
    return sum(
        type(each) is AsyncGeneratorType and each.ag_code.co_name == "changes" for each in gc.get_objects()
    )


def test_a_closed_page_leaves_nothing_behind(site: Web) -> None:
    with site.http(headers=EVENTS) as http, http.stream("GET", "/") as response:
        lines = response.iter_lines()  # the response closes with it
        assert next(lines)
        assert open_streams() == 1
    wait_for(lambda: open_streams() == 0, "the end of the stream")


def test_open_pages_do_not_hold_up_a_stop(tmp_path: Path, text_model: Path) -> None:
    with serving(web_settings(tmp_path, text_model)) as web:
        stream = httpx.stream("GET", f"{web.url}/", headers=EVENTS, timeout=30)
        lines = stream.__enter__().iter_lines()
        assert next(lines)
    list(
        lines
    )  # ends without an error: the server ended the stream, rather than cutting it off after its grace period
    stream.__exit__(None, None, None)


def test_without_an_engine_its_page_says_so(tmp_path: Path, text_model: Path) -> None:
    with serving(web_settings(tmp_path, text_model)) as web, web.http(headers=HTML) as http:
        page = http.get("/engine")
        assert page.status_code == 503
        assert "The engine is not reachable" in page.text
        assert "data-waiting" in page.text
        assert "engine away" in page.text
        assert http.get("/").status_code == 200


def test_changes_need_a_page_of_this_site(site: Web) -> None:
    job_id = add_job(site, JobStatus.PAUSED)
    with site.http() as http:
        for headers in (
            {"Origin": "http://localhost:9999"},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://["},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            for path in (f"/jobs/{job_id}/resume", "/chat"):
                answer = http.post(path, json={}, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site_request")
        stream = http.get("/", headers={**EVENTS, "Sec-Fetch-Site": "cross-site"})
        assert stream.json()["error"]["code"] == "cross_site_request"
        assert http.post(f"/jobs/{job_id}/explode").status_code == 404
        wrong = http.post(f"/jobs/{job_id}/rerun", headers={"Origin": site.url})
        assert wrong.json()["error"]["code"] == "illegal_transition"
        assert http.post("/jobs/none/pause").status_code == 404
        right = http.post(f"/jobs/{job_id}/resume", headers={"Origin": site.url})
        assert right.status_code == 204


def test_a_form_without_a_script_comes_back_to_the_job(site: Web) -> None:
    job_id = add_job(site, JobStatus.IN_PROGRESS)
    with site.http(headers={**HTML, "Origin": site.url}) as http:
        answer = http.post(f"/jobs/{job_id}/pause")
        assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job_id}")
        page = http.get(answer.headers["location"])
        assert "paused" in page.text


def test_a_change_of_many_jobs_says_what_it_did(site: Web) -> None:
    paused, ended = (add_job(site, status) for status in (JobStatus.PAUSED, JobStatus.COMPLETED))
    with site.http() as http:
        bodies = [
            b"",
            b"[]",
            b'{"change": "explode"}',
            b'{"change": "pause", "jobs": 1}',
            b'{"x": ' + b"[" * 100_000,
        ]
        for body in (*bodies, json.dumps({"change": "pause", "jobs": ["x"] * 26}).encode()):
            answer = http.post("/jobs", content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), body
        answer = http.post("/jobs", json={"change": "resume", "jobs": [paused, ended, "none"]}).json()
        assert (answer["changed"], answer["after"]) == (1, None)
        assert [each["id"] for each in answer["refused"]] == [ended, "none"]
        assert "No such batch: 'none'." in answer["refused"][1]["message"]
        answer = http.post("/jobs", json={"change": "pause", "search": paused}).json()
        assert answer == {"changed": 1, "refused": [], "after": None}
        assert http.get("/jobs", follow_redirects=True, headers=HTML).url == f"{site.url}/"


def test_chat_takes_a_conversation_only(site: Web) -> None:
    with site.http() as http:
        bodies = [b"", b"[]", b'{"messages": 1}', b'{"messages": []}', b'{"messages": [{"role": "x"}]}']
        bodies += [b'{"messages": [{"role": "us\xff"}]}', b'{"other": ' + b"[" * 100_000]
        for body in bodies:
            answer = http.post("/chat", content=body)
            assert answer.status_code == 400, body
            assert answer.json()["error"]["message"]
        message = {"role": "user", "content": "Hello"}
        lines = http.post("/chat", json={"messages": [message]}).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        assert json.loads(lines[-3].removeprefix("data: "))["usage"]["completion_tokens"] > 0


def test_a_session_chats_but_does_not_use_the_api(tmp_path: Path, text_model: Path, engine: Any) -> None:
    settings = web_settings(tmp_path, text_model, engine_url=engine.url, api_key=KEY)
    message = {"role": "user", "content": "Hello"}
    with serving(settings) as web, web.http() as http:
        rejected = http.post("/chat", json={"messages": [message]})
        assert rejected.status_code == 401
        assert "Log in again" in rejected.json()["error"]["message"], "and nothing about headers"
        assert http.get("/engine", headers=EVENTS).status_code == 401
        http.post("/login", data={"key": KEY})
        assert http.post("/chat", json={"messages": [message]}).status_code == 200
        body = {"model": MODEL_NAME, "messages": [message]}
        assert http.post("/v1/chat/completions", json=body).status_code == 401


@pytest.mark.parametrize(
    "query", ["sort=x", "after=none", "before=%25", "status=nothing", "search=%25", "sort=name&before=x"]
)
def test_a_strange_query_shows_a_page(site: Web, query: str) -> None:
    with site.http(headers=HTML) as http:
        assert http.get(f"/?{query}").status_code == 200


@pytest.mark.parametrize("dark", [False, True])
def test_texts_have_enough_contrast(site: Web, dark: bool) -> None:
    """WCAG AA, for badges of all statuses, buttons, notes, the dialog and the warnings."""
    job_id = add_job(site, JobStatus.PAUSED, errors=[{"code": "x", "line": 1, "message": "wrong"}])
    with browser(dark=dark) as chrome:
        for path in ("/", f"/jobs/{job_id}", "/engine", "/chat", "/nowhere"):
            chrome.get(site.url + path)
            chrome.execute_script(  # type: ignore[no-untyped-call]
                """
                for (const id of ["stale", "toast"]) {
                  document.getElementById(id).hidden = false;
                  document.getElementById(id).textContent = "words";
                }
                document.querySelector("dialog")?.show();
                document.querySelector("details")?.setAttribute("open", "");
                """
            )
            seen, faint = chrome.execute_script(FAINT_TEXTS)  # type: ignore[no-untyped-call]
            assert seen > 5
            assert faint == []
