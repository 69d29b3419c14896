"""Queries about the items of a job that have ended, as its owner sees them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, literal_column, select, text

from bros_batch.db.states import WITHOUT_RESULT, ItemStatus
from bros_batch.db.tables import IS_WITHOUT_RESULT, items

PAGE_ROWS = 500


@dataclass(frozen=True, slots=True)
class EndedItem:
    """What an output or error line is made of. The request, which may be large, is left out."""

    id: int
    line_no: int
    custom_id: str | None
    status: str
    epoch: int
    result: str | None
    error_code: str | None
    error_message: str | None


def ended_page(
    connection: Connection, job_id: str, after_line: int = 0, limit: int = PAGE_ROWS, *statuses: ItemStatus
) -> list[EndedItem]:
    """The next items of a job in input order: those in `statuses`, or all of them if the job has ended.

    `statuses` is SUCCEEDED or some of WITHOUT_RESULT, which is what one partial index covers. For any other set, a
    planner with old statistics assumes that there are few such rows and sorts the whole job for each page.
    """
    query = select(*(items.c[name] for name in EndedItem.__slots__))
    query = query.where(items.c.job_id == job_id, items.c.line_no > after_line)
    if statuses:
        query = query.where(_status_in(*statuses))
    return [EndedItem(*row) for row in connection.execute(query.order_by(items.c.line_no).limit(limit))]


def count_error_codes(connection: Connection, job_id: str) -> dict[str, int]:
    """How many items of a job ended with each error code, the most frequent code first."""
    query = (
        select(items.c.error_code, func.count())
        .where(items.c.job_id == job_id, _status_in(*WITHOUT_RESULT))
        .group_by(items.c.error_code)
        .order_by(func.count().desc())
    )
    return {code or "": count for code, count in connection.execute(query)}


def _status_in(*statuses: ItemStatus) -> ColumnElement[bool]:
    # Literals and not parameters: a planner that sees a parameter cannot know that a partial index covers it.
    if frozenset(statuses) == WITHOUT_RESULT:
        return text(IS_WITHOUT_RESULT)  # type: ignore[return-value]
    return items.c.status.in_([literal_column(f"'{status.value}'") for status in sorted(statuses)])
