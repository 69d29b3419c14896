"""No text from outside becomes markup: a page's elements and attributes are the same whatever the text is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from bros_batch.db import jobs
from bros_batch.db.connections import open_database, writing
from bros_batch.db.in_flight import InFlight
from bros_batch.db.job_list import JobsPage
from bros_batch.db.rows import ItemRow
from bros_batch.db.schema import upgrade
from bros_batch.db.table_rows import File, Job, JobEvent, PaceMinute
from bros_batch.web.dashboard.engine_page import engine_page
from bros_batch.web.dashboard.error_groups import ErrorGroup
from bros_batch.web.dashboard.history import EngineHistory
from bros_batch.web.dashboard.job_page import Details, job_page
from bros_batch.web.dashboard.jobs_page import Listed, Listing, listing_page
from bros_batch.web.dashboard.rendering import FOLDER, Page, fragments, html
from bros_batch.web.dashboard.row_page import RowDetails, row_page
from bros_batch.web.job_rates import JobRates

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    "</title></svg></textarea><b>x</b>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "]]><!-- --><a href='javascript:alert(1)'>x</a>",
    "javascript:alert(1)",
    "`${alert(1)}`\\u003cscript\\u003e",
)
PLAIN = "plain"


class Shape(HTMLParser):
    """The elements of a page with the names of their attributes, the values of its links, and its text."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    database = open_database(f"sqlite:///{tmp_path_factory.mktemp('db')}/bros.db")
    upgrade(str(database.url))

    def create(connection: Connection) -> Job:
        return jobs.create_job(connection, input_file_id="file-x", endpoint="/v1/completions", model="tiny")

    with writing(database) as connection:
        job = create(connection)
    database.dispose()
    return job


def pages(job: Job, text: str) -> list[Page]:
    """Every page, with `text` wherever a text comes from a user, a file, a model or an engine."""
    schema = {"type": "object", "properties": {text: {}}}
    held = InFlight(1, 1, 1)
    named = replace(
        job,
        id=text,
        name=text,
        model=text,
        endpoint=text,
        output_file_id=text,
        input_file_id=text,
        failed=1,
        total=1,
        status="completed",
        defaults={text: text, f"{text} ": [text, {text: None}], "guided_json": schema},
        source={"name": text, "id_field": text},
        errors=[{"code": text, "line": text, "message": text, "param": text}],
    )
    file = File(text, "batch", text, 1, text, text, 0.0, None)
    group = ErrorGroup(text, text, text, [1])
    events = [JobEvent(1, text, 0.0, kind, {}) for kind in ("created", "completed")]
    minutes = [PaceMinute(text, text, 60.0 * n, {"ended": 5.0 * n}) for n in range(4)]
    listed = Listed(JobsPage([named], True, True), {"completed": 1}, {text: text}, in_flight={text: held})
    listing = Listing(search=text, sort="name", after=text)
    item = ItemRow(1, 1, text, "failed", 1, 1, _json(text), _result(text), text, text, 1, 1, 1.0, 2.0)
    running = replace(named, status="in_progress", source=None)
    documents = replace(named, ingest_form="document", endpoint="/v1/completions")
    return [
        listing_page(listing, listed, JobRates(), 0.0),
        job_page(Details(named, ["rerun"], file, [group], text, events, minutes), JobRates(), 0.0),
        job_page(Details(named, [], None), JobRates(), 0.0),
        job_page(Details(running, ["pause"], file, in_flight=held), JobRates(), 0.0),
        row_page(RowDetails(documents, item, 1, None), "", 0.0),
        row_page(RowDetails(replace(named, ingest_form="batch"), item, None, 3), "failed", 0.0),
        engine_page(text, text, {}, EngineHistory()),
        Page("404.html", {"heading": "No such job", "what": text}),
        Page("unavailable.html", {"problem": text}),
    ]


def _json(text: str) -> str:
    return json.dumps({text: text, f"{text} ": [text, {text: None}]})


def _result(text: str) -> str:
    choice = {"text": text, "finish_reason": text, "message": {"content": text}}
    return json.dumps({"choices": [choice], text: text})


def check(job: Job, text: str) -> None:
    for hostile, plain in zip(pages(job, text), pages(job, PLAIN), strict=True):
        contents = [[*fragments(each).values(), _whole(each)] for each in (hostile, plain)]
        for content, expected in zip(*contents, strict=True):
            shape = Shape(content)
            assert shape.elements == Shape(expected).elements, hostile.template
            assert all(link.startswith("/") for link in shape.links)
        if text.strip():
            assert text.strip() in re.sub(r"\r\n?", "\n", "".join(shape.text)), hostile.template


def _whole(page: Page) -> str:
    return bytes(html(page, engine="up", has_session=True).body).decode(errors="replace")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_only_text(job: Job, text: str) -> None:
    check(job, text)


# Without what HTML cannot hold at all, and what a parser makes another character of.
CHARACTERS = st.characters(exclude_categories=("Cs", "Cc"))


@given(text=st.text(st.one_of(st.sampled_from("<>&\"'`={}%/ "), CHARACTERS), min_size=1, max_size=20))
def test_any_text_is_only_text(job: Job, text: str) -> None:
    check(job, text)


def test_nothing_is_trusted() -> None:
    """No template or function says that some text needs no escaping, and no template has a script or a style in it."""
    for path in (*FOLDER.glob("templates/*"), *FOLDER.glob("*.py")):
        source = Path(path).read_text(encoding="utf-8")
        assert not re.search(r"\bsafe\b|autoescape false|Markup|<style|\sstyle=|\son[a-z]+=\"", source), path
        assert re.findall(r"<script(?! type=\"module\" src=\"\{\{ asset)", source) == [], path
