"""How soon does a browser show the dashboard's pages, and how soon do they respond, with many jobs and rows?

    python -m benchmarks.pages [--jobs 10000] [--rows 1000000] [--keep DIR]

A database (SQLite) is filled as by `benchmarks.rows`, and with further jobs of no rows. Chromium loads the page of jobs
and that of the large job, each time with an empty cache. Reported are medians: the first contentful paint, the time
until the rows of the first view are there, and for each interaction the time until a frame shows its result.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome
from sqlalchemy import func, select, update

from benchmarks.machine import write_result
from benchmarks.rows import filled_server
from bros_batch.db import jobs, tables
from bros_batch.db.connections import open_database, reading, writing
from tests.bros_batch.web.browser import browser
from tests.services import wait_for

REPEATS = 5
GROUP = 500
STATUSES = ("completed", "completed", "failed", "cancelled", "paused")
# Runs an action, and calls back with the milliseconds until a frame in which the condition holds.
TIMED = """
const [action, condition, done] = arguments;
const holds = new Function("return " + condition);
const start = performance.now();
new Function(action)();
const end = () => done(performance.now() - start);
const look = () => requestAnimationFrame(holds() ? end : look);
look();
"""
SET = (
    "const field = document.querySelector('{field}'); field.focus(); field.value = '{value}';"
    "field.dispatchEvent(new Event('input', {{bubbles: true}})); {then}"
)
JOBS_SHOWN = "document.querySelectorAll('tr.job').length > 1"
ROWS_SHOWN = "document.querySelectorAll('tr.row .badge').length > 5"
NUMBERS = "[...document.querySelectorAll('tr.row .number a')].map((each) => each.textContent)"


def add_jobs(url: str, count: int) -> None:
    """Let the database have at least this many jobs."""
    database = open_database(url)
    with reading(database) as connection:
        there = connection.scalar(select(func.count()).select_from(tables.jobs)) or 0
    for start in range(there, count, GROUP):
        with writing(database) as connection:
            for number in range(start, min(start + GROUP, count)):
                job = jobs.create_job(
                    connection,
                    name=f"invoices of branch {number}",
                    input_file_id="file-0",
                    endpoint="/v1/chat/completions",
                    model="tiny",
                    defaults={"prompt": "{text}"},
                )
                counts = {"total": 100, "succeeded": 90, "failed": 10}
                status = STATUSES[number % len(STATUSES)]
                row = tables.jobs.c.id == job.id
                connection.execute(update(tables.jobs).where(row).values(status=status, **counts))
    database.dispose()


def timed(chrome: Chrome, action: str, condition: str) -> float:
    found: Any = chrome.execute_async_script(TIMED, action, condition)  # type: ignore[no-untyped-call]
    return float(found)


def load(chrome: Chrome, url: str, condition: str) -> dict[str, float]:
    """Load a page with an empty cache. Returns the times of its first paint and of its content."""
    chrome.execute_cdp_cmd("Network.clearBrowserCache", {})
    chrome.get(url)
    script = "return performance.now() * Number(" + condition + ")"
    shown = wait_for(lambda: chrome.execute_script(script), "the content of the page")  # type: ignore[no-untyped-call]
    paint = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    first = wait_for(lambda: chrome.execute_script(paint), "the first paint")  # type: ignore[no-untyped-call]
    assert shown is not None
    assert first is not None
    return {"first paint": first, "content": shown}


def jobs_page(chrome: Chrome, base: str) -> dict[str, float]:
    times = load(chrome, f"{base}/", JOBS_SHOWN)
    click = "document.querySelector('{}').click()"
    times["status"] = timed(
        chrome,
        click.format("#state-failed"),
        "![...document.querySelectorAll('tr.job .badge')].some((each) => !each.matches('.failed'))",
    )
    times["next page"] = timed(
        chrome,
        "window.first = document.querySelector('tr.job').id;" + click.format("#next"),
        "document.querySelector('tr.job').id !== first",
    )
    find = SET.format(field="#filters [name=search]", value="branch 7777", then="")
    times["search"] = timed(chrome, find, "document.querySelectorAll('tr.job').length < 3")
    return times


def rows_page(chrome: Chrome, url: str, last: int) -> dict[str, float]:
    times = load(chrome, url, ROWS_SHOWN)
    half = last // 2
    go = SET.format(field="#row-filters [name=row]", value=half, then="field.form.requestSubmit()")
    times["jump to a row"] = timed(chrome, go, f"{NUMBERS}.includes('{half}')")
    scroll = "document.querySelector('#rows').scrollTop *= 1.5"
    times["scroll"] = timed(chrome, scroll, f"{NUMBERS}.length > 5 && !{NUMBERS}.includes('{half}')")
    times["failed rows"] = timed(
        chrome, "document.querySelector('[data-rows=failed]').click()", f"{NUMBERS}[0] === '9999'"
    )
    find = SET.format(
        field="#row-filters [name=search]", value="vendor 13 ltd", then="field.form.requestSubmit()"
    )
    everything = "document.querySelector('[data-rows=all]').click();"
    times["search"] = timed(chrome, everything + find, f"{NUMBERS}[0] === '13'")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--keep", type=Path, help="keep the database in this directory, and use the one that is there"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as temporary,
        filled_server(Path(temporary), arguments.keep, arguments.rows) as (base, job),
    ):
        add_jobs(f"sqlite:///{(arguments.keep or Path(temporary)) / 'rows.db'}", arguments.jobs)
        measured: dict[str, list[dict[str, float]]] = {"jobs": [], "rows": []}
        with browser(width=1440) as chrome:
            chrome.set_script_timeout(30)
            for _ in range(REPEATS):
                measured["jobs"].append(jobs_page(chrome, base))
                measured["rows"].append(rows_page(chrome, f"{base}/jobs/{job}", arguments.rows))
        medians = {
            page: {name: statistics.median(each[name] for each in times) for name in times[0]}
            for page, times in measured.items()
        }
        for page, times in medians.items():
            for name, value in times.items():
                print(f"{page:6} {name:16} {value:8.0f} ms")
        result = {"jobs": arguments.jobs, "rows": arguments.rows, "median_ms": medians}
        write_result(arguments.out, "pages", result)


if __name__ == "__main__":
    main()
