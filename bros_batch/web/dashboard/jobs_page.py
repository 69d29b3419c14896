"""The list of jobs: a search, a filter by status and an order, all in the URL, with live progress."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import Connection
from starlette.datastructures import QueryParams
from starlette.requests import Request

from bros_batch.db.in_flight import InFlight, in_flight
from bros_batch.db.job_list import ORDERS, JobFilter, JobsPage, count_by_status, jobs_page
from bros_batch.db.states import JobStatus
from bros_batch.db.waiting import waiting_reasons
from bros_batch.forecast import Forecast
from bros_batch.web.app_state import app_state
from bros_batch.web.dashboard.job_words import STATUS_WORDS
from bros_batch.web.dashboard.rendering import Page
from bros_batch.web.job_forecasts import forecasts
from bros_batch.web.job_rates import JobRates
from bros_batch.web.owners import visible_owner

ROWS = 50
MAX_SEARCH_CHARS = 200
STATUSES = {each.value: STATUS_WORDS.get(each, each.value) for each in JobStatus}
ORDER_WORDS = {
    "newest": "Newest first",
    "oldest": "Oldest first",
    "finished": "Finished last",
    "name": "By name",
    "largest": "Most rows",
    "failed": "Most failures",
    "tokens": "Most tokens",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """What the URL asks for. Anything strange in it is as if it were not there."""

    search: str = ""
    status: str = ""
    sort: str = "newest"
    after: str = ""
    before: str = ""

    @classmethod
    def of_query(cls, query: QueryParams) -> Listing:
        status, sort = query.get("status", ""), query.get("sort", "")
        return cls(
            query.get("search", "").strip()[:MAX_SEARCH_CHARS],
            status if status in STATUSES else "",
            sort if sort in ORDERS else "newest",
            query.get("after", ""),
            query.get("before", ""),
        )

    def url(self, **changes: str) -> str:
        """The URL of this listing with some changes, on its first page unless a change names another one."""
        changed = asdict(replace(self, **{"after": "", "before": "", **changes}))
        fields = {
            name: value for name, value in changed.items() if value and (name, value) != ("sort", "newest")
        }
        return f"/?{urlencode(fields)}" if fields else "/"

    @property
    def filter(self) -> JobFilter:
        return JobFilter(self.search, self.status)


@dataclass(frozen=True, slots=True)
class Listed:
    """What the database has for a listing. `waiting` has a sentence for each job that waits."""

    page: JobsPage
    counts: dict[str, int]
    waiting: dict[str, str]
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    in_flight: dict[str, InFlight] = field(default_factory=dict)


async def read_jobs(request: Request) -> Page:
    """The jobs that the URL asks for."""
    listing = Listing.of_query(request.query_params)
    now_s, rates = time.time(), app_state(request).rates
    which = replace(listing.filter, owner=visible_owner(request))

    def read(connection: Connection) -> Listed:
        page = jobs_page(connection, which, listing.sort, ROWS, after=listing.after, before=listing.before)
        counts = count_by_status(connection, replace(which, status=""))
        reasons = waiting_reasons(connection, page.jobs, now_s)
        expected = forecasts(connection, rates.engine, page.jobs, now_s)
        return Listed(page, counts, reasons, expected, in_flight(connection, page.jobs, now_s))

    return listing_page(listing, await app_state(request).read(read), rates, now_s)


def listing_page(listing: Listing, listed: Listed, rates: JobRates, now_s: float) -> Page:
    """The page of a listing at a time."""
    shown, total = listed.page.jobs, sum(listed.counts.values())
    states = [("all", "", total)]
    states += [
        (word, status, listed.counts.get(status, 0))
        for status, word in STATUSES.items()
        if listed.counts.get(status) or status == listing.status
    ]
    values: dict[str, Any] = {
        "now_s": now_s,
        "jobs": [
            (
                job,
                rates.observe(job, now_s),
                *(each.get(job.id) for each in (listed.forecasts, listed.waiting, listed.in_flight)),
            )
            for job in shown
        ],
        "listing": listing,
        "states": [(word, status, count, listing.url(status=status)) for word, status, count in states],
        "orders": ORDER_WORDS,
        "matching": listed.counts.get(listing.status, 0) if listing.status else total,
        "previous": listing.url(before=shown[0].id) if shown and listed.page.has_before else None,
        "next": listing.url(after=shown[-1].id) if shown and listed.page.has_after else None,
    }
    return Page("jobs.html", values, live=("states", "listing"))
