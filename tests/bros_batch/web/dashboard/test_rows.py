"""The rows of a job, and a row's own page, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from sqlalchemy import insert, update

from bros_batch.db import job_events, jobs, tables
from bros_batch.db.connections import open_database, reading, writing
from tests.bros_batch.web.browser import browser
from tests.bros_batch.web.dashboard.test_pages import press, shown, wait_text
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.services import wait_for

ROWS = 250_000  # higher than a browser allows an element to be, if each row has its pixels
SCHEMA = {
    "type": "object",
    "properties": {"vendor": {"type": "string"}, "total": {"type": "number"}},
    "required": ["vendor", "total"],
    "additionalProperties": False,
}
HOSTILE = "<script>document.title='pwned'</script>"


def result(answer: str, finish_reason: str = "stop") -> str:
    return json.dumps({"choices": [{"message": {"content": answer}, "finish_reason": finish_reason}]})


def item(job_id: str, row: int) -> dict[str, Any]:
    answer = f'{{"vendor": "Vendor {row % 7}", "total": {row}.5}}'
    values = {
        "status": "succeeded",
        "result": result(answer),
        "error_code": None,
        "error_message": None,
        "prompt_tokens": 50,
        "output_tokens": 9,
    }
    if row == 2:
        values["result"] = result(answer[:-5], "length")
    if row % 50_000 == 3:
        message = f"Row {row}: the prompt has {row} tokens too many."
        values |= {"status": "failed", "result": None, "error_code": "too_long", "error_message": message}
    text = HOSTILE if row == 4 else f"Invoice number {row}"
    return {
        "job_id": job_id,
        "line_no": row,
        "custom_id": f"id-{row}",
        "body": json.dumps({"text": text, "country": "DE"}),
        "queued_at": 10.0,
        "finished_at": 12.5,
        **values,
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, text_model: Any, engine: Any) -> Iterator[Web]:
    """A server without workers, so that a row that is run again waits."""
    directory = tmp_path_factory.mktemp("rows")
    with serving(web_settings(directory, text_model, engine_url=engine.url)) as web:
        yield web


@pytest.fixture(scope="module")
def job_id(site: Web) -> str:
    database = open_database(site.settings.resolved_database_url)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    with writing(database) as connection:
        job = jobs.create_job(
            connection,
            input_file_id="file-none",
            endpoint="/v1/chat/completions",
            model=MODEL_NAME,
            name="many rows",
            defaults={"prompt": "Read this: {text}", "response_format": form},
        )
        failed = sum(row % 50_000 == 3 for row in range(1, ROWS + 1))
        values = {
            "status": "completed",
            "total": ROWS,
            "failed": failed,
            "succeeded": ROWS - failed,
            "ingest_form": "document",
            "ingest_line": ROWS,
            "ingest_offset": 60 * ROWS,
            "completed_at": job.created_at + 60,
        }
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(values))
        for start in range(1, ROWS + 1, 50_000):
            connection.execute(
                insert(tables.items), [item(job.id, row) for row in range(start, start + 50_000)]
            )
    database.dispose()
    return job.id


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    with browser() as chrome:
        yield chrome


def cells(chrome: Chrome) -> dict[str, list[str]]:
    """The texts of the rows that exist, by the text of their first cell."""
    script = """
    const view = document.getElementById("rows").getBoundingClientRect();
    const rows = [...document.querySelectorAll("tr.row")].filter((row) => {
      const { top, bottom } = row.getBoundingClientRect();
      return bottom > view.top + 30 && top < view.bottom;
    });
    return rows.map((row) => [...row.cells].map((cell) => cell.textContent));
    """
    rows: list[list[str]] = chrome.execute_script(script)  # type: ignore[no-untyped-call]
    return {row[0]: row[1:] for row in rows}


def wait_row(chrome: Chrome, row: int) -> list[str]:
    """The cells of a row in view, once it has been fetched."""

    def there() -> list[str] | None:
        found = cells(chrome).get(str(row), ["…"])
        return None if found[0] == "…" else found

    return wait_for(there, f"row {row}") or []


def scroll(chrome: Chrome, script: str) -> None:
    chrome.execute_script(f"const rows = document.getElementById('rows'); {script}")  # type: ignore[no-untyped-call]


def test_all_rows_can_be_reached(site: Web, chrome: Chrome, job_id: str) -> None:
    chrome.get(f"{site.url}/jobs/{job_id}")
    wait_row(chrome, 1)
    assert heads(chrome) == ["Row", "Status", "Id", "text", "country", "vendor", "total"]
    assert cells(chrome)["1"] == ["done", "id-1", "Invoice number 1", "DE", "Vendor 1", "1.5"]
    assert cells(chrome)["3"][-1] == "too_long: Row 3: the prompt has 3 tokens too many."
    assert cells(chrome)["4"][2] == HOSTILE
    assert chrome.title != "pwned"

    scroll(chrome, "rows.scrollTop = rows.scrollHeight")
    wait_row(chrome, ROWS)
    scroll(chrome, "rows.scrollTop = rows.scrollHeight / 2")
    wait_for(lambda: any(abs(int(row) - ROWS / 2) < 50 for row in cells(chrome)), "the middle")
    before = min(map(int, cells(chrome)))
    scroll(chrome, "rows.scrollTop += 80")  # two rows
    wait_for(lambda: min(map(int, cells(chrome))) == before + 2, "two rows further")

    field = chrome.find_element(By.CSS_SELECTOR, '[aria-label="Go to row"]')
    field.send_keys("123456", Keys.ENTER)
    wait_row(chrome, 123_456)
    wait_for(lambda: "row=123456" in chrome.current_url, "the row in the URL")
    chrome.refresh()
    wait_row(chrome, 123_456)
    assert len(chrome.find_elements(By.CSS_SELECTOR, "tr.row")) < 100


def test_the_keyboard_goes_from_row_to_row(site: Web, chrome: Chrome, job_id: str) -> None:
    chrome.get(f"{site.url}/jobs/{job_id}")
    wait_row(chrome, 1)
    scroll(chrome, "rows.querySelector('a').focus()")
    for _ in range(30):
        chrome.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert chrome.switch_to.active_element.text == "31"
    assert "31" in cells(chrome)
    for key in (Keys.TAB, Keys.SHIFT + Keys.TAB + Keys.SHIFT):
        chrome.switch_to.active_element.send_keys(key)
    assert chrome.switch_to.active_element.text == "31", "the rows are one stop of the Tab key"
    chrome.switch_to.active_element.send_keys(Keys.ARROW_UP, Keys.ENTER)
    wait_text(chrome, "Row 30", "Invoice number 30")
    chrome.back()
    wait_for(lambda: "30" in cells(chrome), "the place that was left")


def test_filters_and_a_search_are_in_the_url(site: Web, chrome: Chrome, job_id: str) -> None:
    chrome.get(f"{site.url}/jobs/{job_id}?status=failed")
    text = wait_text(chrome, "5 rows match.")
    assert list(cells(chrome)) == ["3", "50003", "100003", "150003", "200003"]
    assert "too_long" in text, "errors that differ in numbers only are one group"
    assert [each.text for each in chrome.find_elements(By.CSS_SELECTOR, "table.errors .count")] == ["5"]
    chrome.find_element(By.CSS_SELECTOR, 'a[data-rows="all"]').click()
    wait_for(lambda: "2" in cells(chrome), "all rows")
    chrome.find_element(By.CSS_SELECTOR, '[aria-label="Search rows"]').send_keys("number 199999")
    wait_text(chrome, "1 row matches.")
    assert list(cells(chrome)) == ["199999"]
    assert chrome.current_url == f"{site.url}/jobs/{job_id}?search=number+199999"
    chrome.back()
    wait_for(lambda: "2" in cells(chrome), "all rows")
    chrome.back()
    wait_for(lambda: list(cells(chrome))[:2] == ["3", "50003"], "the failed rows")
    chrome.find_element(By.CSS_SELECTOR, "tr.row a").send_keys(Keys.ENTER)
    wait_text(chrome, "Row 3", "failed", "the prompt has 3 tokens too many")


def test_a_row_shows_all_that_is_known_and_runs_again(site: Web, chrome: Chrome, job_id: str) -> None:
    url = f"{site.url}/jobs/{job_id}/rows"
    chrome.get(f"{url}/4")
    check = "The answer is valid for its schema."
    wait_text(chrome, HOSTILE, f"Read this: {HOSTILE}", check, "2.50 s", "by itself")
    assert chrome.title != "pwned"
    chrome.get(f"{url}/2")
    wait_text(chrome, "The answer was cut at the token limit.", "The model wrote:")
    chrome.find_element(By.CSS_SELECTOR, "[rel=next]").click()
    wait_text(chrome, "Row 3", "too_long")
    press(chrome, "Run again")
    wait_text(chrome, "waiting", "This row waits for its turn.")
    chrome.get(f"{site.url}/jobs/{job_id}")
    text = wait_text(chrome, "Run again: 1 row", "running")
    assert "failed 4" in text
    wait_for(lambda: cells(chrome).get("3", ["…"])[0] == "waiting", "the row")
    with site.http(headers={"Accept": "text/html"}) as http:
        for path in ("0", "x", str(ROWS + 1), "9" * 30):
            answer = http.get(f"/jobs/{job_id}/rows/{path}")
            assert answer.status_code == 404
            assert "No such row" in answer.text


def test_the_log_is_bounded(site: Web, job_id: str) -> None:
    database = open_database(site.settings.resolved_database_url)
    with writing(database) as connection:
        job = jobs.create_job(connection, input_file_id="f", endpoint="/v1/completions", model=MODEL_NAME)
        for number in range(job_events.MAX_EVENTS + 50):
            job_events.add_event(connection, job, "paused", float(number))
    with reading(database) as connection:
        events = job_events.list_events(connection, job.id)
        others = job_events.list_events(connection, job_id)
    database.dispose()
    assert [event.at for event in events] == [float(number) for number in range(50, 250)]
    assert {event.job_id for event in others} == {job_id}


def small_job(site: Web, name: str, answer: str | None = None, **defaults: Any) -> str:
    """Create a paused job of one row that waits; or, if the job is there, give the row an answer."""
    database = open_database(site.settings.resolved_database_url)
    job_id = f"batch_{name}"
    with writing(database) as connection:
        if answer is None:
            jobs.create_job(
                connection,
                job_id=job_id,
                input_file_id="file-none",
                endpoint="/v1/chat/completions",
                model=MODEL_NAME,
                defaults={"prompt": "Read this: {text}", **defaults},
            )
            values: dict[str, Any] = {
                "status": "paused", "total": 1, "ingest_form": "document", "ingest_line": 1
            }  # fmt: skip
            waiting = {"status": "pending", "result": None, "queued_at": None, "finished_at": None}
            connection.execute(insert(tables.items), [{**item(job_id, 1), **waiting}])
        else:
            values = {"succeeded": 1}
            done = {"status": "succeeded", "result": result(answer)}
            connection.execute(update(tables.items).where(tables.items.c.job_id == job_id).values(done))
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job_id).values(values))
    database.dispose()
    return job_id


def heads(chrome: Chrome) -> list[str]:
    script = "return [...document.querySelectorAll('table.rows th')].map((each) => each.textContent)"
    found: list[str] = chrome.execute_script(script)  # type: ignore[no-untyped-call]
    return found


def test_columns_are_those_of_the_schema_or_else_of_the_first_answer(site: Web, chrome: Chrome) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    known, unknown = small_job(site, "known", response_format=form), small_job(site, "unknown")
    chrome.get(f"{site.url}/jobs/{known}")
    assert wait_row(chrome, 1)[0] == "waiting"
    assert heads(chrome)[-2:] == ["vendor", "total"]
    assert chrome.find_element(By.ID, "rows").size["height"] < 120, "a table of one row is low"
    chrome.get(f"{site.url}/jobs/{unknown}")
    wait_row(chrome, 1)
    assert heads(chrome)[-1] == "answer"
    small_job(site, "unknown", '{"city": "Bonn", "people": 330000}')
    wait_for(lambda: heads(chrome)[-2:] == ["city", "people"], "the columns of the first answer")
    assert cells(chrome)["1"][-2:] == ["Bonn", "330000"]


def test_the_rows_of_a_phone(site: Web, job_id: str) -> None:
    with browser(width=390, height=844, dark=True) as phone:
        phone.get(f"{site.url}/jobs/{job_id}")
        wait_row(phone, 1)
        width = phone.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")  # type: ignore[no-untyped-call]
        assert width[0] <= width[1], "the page is wider than the screen"
        assert "Rows" in shown(phone)
        assert phone.get_log("browser") == []  # type: ignore[no-untyped-call]
