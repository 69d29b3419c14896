"""Queries about the rows of a job: one row, and pages of rows by number, status and text.

A page costs a bounded amount of work, wherever in the job it is. Rows without a condition, or with a status that has an
index of its own, are read in order from that index. Otherwise ranges of row numbers are looked through until the page
is full or the time is up, and the page says how far that was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, literal_column, or_, select, text

from bros_batch.db.connections import is_postgres
from bros_batch.db.states import WITHOUT_RESULT, ItemStatus
from bros_batch.db.table_rows import Job
from bros_batch.db.tables import IS_WITHOUT_RESULT, items

MAX_PAGE_BYTES = 8 * 1024**2
# How long one request may look for rows, and the text that is looked through between two looks at the clock.
LOOK_S = 0.25
LOOK_BYTES = 2 * 1024**2
LOOK_ROWS = 20_000
LIKE_ESCAPE = "~"


@dataclass(frozen=True, slots=True)
class ItemRow:
    """All that is stored about a row of a job."""

    id: int
    line_no: int
    custom_id: str | None
    status: str
    attempts: int
    epoch: int
    body: str | None
    result: str | None
    error_code: str | None
    error_message: str | None
    prompt_tokens: int
    output_tokens: int
    queued_at: float | None
    finished_at: float | None

    @property
    def size(self) -> int:
        """Characters of its texts, about."""
        return 256 + len(self.body or "") + len(self.result or "")


@dataclass(frozen=True, slots=True)
class RowQuery:
    """Which rows of a job are asked for: those after a row in either direction, with a status and with a text.

    `ended` leaves out the rows that have neither a result nor an error yet, and `only_failed` all but those that ended
    without a result. The database looks for `search` in all
    stored text, and `matches` then decides.
    """

    after: int | None = None
    limit: int = 100
    descending: bool = False
    status: ItemStatus | None = None
    search: str | None = None
    matches: Callable[[ItemRow], bool] | None = None
    ended: bool = False
    only_failed: bool = False


@dataclass(frozen=True, slots=True)
class RowsPage:
    """A page of rows. More may follow after the row `next_after`; None after the last page."""

    rows: list[ItemRow]
    next_after: int | None


def get_row(connection: Connection, job_id: str, row: int) -> ItemRow | None:
    query = select(*_COLUMNS).where(items.c.job_id == job_id, items.c.line_no == row)
    found = connection.execute(query).first()
    return ItemRow(*found) if found else None


def rows_page(connection: Connection, job: Job, query: RowQuery) -> RowsPage:
    """The next rows of a job that a query asks for."""
    if query.search is not None or not _has_index(job, query):
        return _looked_for(connection, job, query)
    found: list[ItemRow] = []
    size = 0
    average = job.ingest_offset // max(job.ingest_line, 1) + 1024
    after = query.after
    while len(found) < query.limit and size < MAX_PAGE_BYTES:
        wanted = max(1, min(query.limit + 1 - len(found), MAX_PAGE_BYTES // average))
        part = _part(connection, job.id, query, after, None, wanted)
        found += part
        if len(part) < wanted:
            return RowsPage(found, None)
        size += sum(row.size for row in part)
        average = max(average, size // len(found))
        after = part[-1].line_no
    if len(found) > query.limit:
        found.pop()
    return RowsPage(found, found[-1].line_no)


def _looked_for(connection: Connection, job: Job, query: RowQuery) -> RowsPage:
    """The rows of a query that no index finds, from one range of row numbers after the other."""
    found: list[ItemRow] = []
    size = 0
    at_once = LOOK_ROWS
    if query.search is not None:
        average = job.ingest_offset // max(job.ingest_line, 1) + 1024
        at_once = min(LOOK_ROWS, max(LOOK_BYTES // average, 16))
    until_s = time.monotonic() + LOOK_S
    end = 1 if query.descending else job.ingest_line
    after = (
        min(query.after or job.ingest_line + 1, job.ingest_line + 1) if query.descending else query.after or 0
    )
    while after > end if query.descending else after < end:
        last = max(end, after - at_once) if query.descending else min(end, after + at_once)
        wanted = query.limit + 1 - len(found)
        part = _part(connection, job.id, query, after, last, wanted)
        found += filter(query.matches, part)
        if len(found) > query.limit:
            return RowsPage(found[:-1], found[-2].line_no)
        after = part[-1].line_no if len(part) == wanted else last
        size += sum(row.size for row in part)
        if after != end and (size >= MAX_PAGE_BYTES or time.monotonic() >= until_s):
            return RowsPage(found, after)
    return RowsPage(found, None)


def _part(
    connection: Connection, job_id: str, query: RowQuery, after: int | None, last: int | None, limit: int
) -> list[ItemRow]:
    """Rows of a query after a row, up to another one."""
    line_no = items.c.line_no
    conditions: list[ColumnElement[bool]] = [items.c.job_id == job_id]
    if after is not None:
        conditions.append(line_no < after if query.descending else line_no > after)
    if last is not None:
        conditions.append(line_no >= last if query.descending else line_no <= last)
    if query.status is not None:
        conditions.append(_has_status(query.status))
    if query.only_failed:
        conditions.append(text(IS_WITHOUT_RESULT))  # type: ignore[arg-type]
    if query.ended:
        conditions.append(items.c.status.not_in(("pending", "queued")))
    if query.search is not None:
        conditions.append(_contains(query.search, is_postgres(connection)))
    order = line_no.desc() if query.descending else line_no
    rows = connection.execute(select(*_COLUMNS).where(and_(*conditions)).order_by(order).limit(limit))
    return [ItemRow(*row) for row in rows]


def _has_index(job: Job, query: RowQuery) -> bool:
    """Whether all rows in an index are rows of a query; those without a result share one."""
    if query.ended and not query.only_failed and job.ended < job.total:
        return False
    if query.status in WITHOUT_RESULT:
        counts = {"failed": job.failed, "cancelled": job.cancelled, "expired": job.expired}
        return sum(count > 0 for status, count in counts.items() if status != query.status) == 0
    return True


def _has_status(status: ItemStatus) -> ColumnElement[bool]:
    # Literals and not parameters: a planner that sees a parameter cannot know that a partial index covers it.
    own = items.c.status == literal_column(f"'{status.value}'")
    return and_(text(IS_WITHOUT_RESULT), own) if status in WITHOUT_RESULT else own


def _contains(search: str, ignores_case: bool) -> ColumnElement[bool]:
    """Whether the text of a row may contain what is searched for, in any of the ways in which JSON writes it.

    SQLite's LIKE ignores the case of ASCII letters only, hence the variants of others.
    """
    variants = {search}
    if not search.isascii():
        variants |= {search.lower(), search.upper(), search.capitalize()}
    written = {form for each in variants for form in (each, json.dumps(each)[1:-1], _escaped(each))}
    patterns = sorted(f"%{_like(form)}%" for form in written)
    columns = (items.c.body, items.c.result, items.c.custom_id, items.c.error_message)
    return or_(
        *(
            (column.ilike if ignores_case else column.like)(pattern, escape=LIKE_ESCAPE)
            for column in columns
            for pattern in patterns
        )
    )


def _escaped(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)[1:-1]


def _like(value: str) -> str:
    for special in (LIKE_ESCAPE, "%", "_"):
        value = value.replace(special, LIKE_ESCAPE + special)
    return value


_COLUMNS: list[ColumnElement[Any]] = [items.c[name] for name in ItemRow.__slots__]
