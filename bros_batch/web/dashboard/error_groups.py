"""The errors of a job, with those together that say the same about different rows."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from bros_batch.db.ended_items import count_error_codes, ended_page
from bros_batch.db.states import WITHOUT_RESULT
from bros_batch.db.table_rows import Job

SAMPLE_ROWS = 500
MAX_GROUPS = 20
SHOWN_ROWS = 5
MAX_MESSAGE_CHARS = 300
NUMBER = re.compile(r"\d[\d,.]*")
# Counting the errors of a large job takes a while, so while they grow they are counted from time to time only.
MANY_ERRORS = 20_000
MANY_ERRORS_S = 10.0
MAX_JOBS = 200


@dataclass(slots=True)
class ErrorGroup:
    """Errors with one code, and with messages that differ in numbers only. `count` has a `+` if there may be more."""

    code: str
    message: str
    count: str = ""
    rows: list[int] = field(default_factory=list)
    num_seen: int = 0


@dataclass(frozen=True, slots=True)
class _Known:
    without_result: int
    at_s: float
    groups: Sequence[ErrorGroup]


class ErrorReports:
    """The errors of the jobs that pages show. A job's are read again only when their number has changed."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def of_job(self, connection: Connection, job: Job) -> Sequence[ErrorGroup]:
        """The errors of a job's rows, or else those of lines that made its whole file invalid."""
        count = job.counts.without_result
        if not count:
            return group_errors(
                (each.get("line"), each.get("code"), each.get("message")) for each in job.errors
            )
        known = self._known.get(job.id)
        now_s = time.monotonic()
        if known and (
            known.without_result == count or (count > MANY_ERRORS and now_s < known.at_s + MANY_ERRORS_S)
        ):
            return known.groups
        codes = count_error_codes(connection, job.id)
        sample = ended_page(connection, job.id, 0, SAMPLE_ROWS, *WITHOUT_RESULT)
        groups = group_errors((each.line_no, each.error_code, each.error_message) for each in sample)
        _count(groups, codes, is_whole=count <= len(sample))
        self._known[job.id] = _Known(count, now_s, groups)
        self._known.move_to_end(job.id)
        while len(self._known) > MAX_JOBS:
            self._known.popitem(last=False)
        return groups


def group_errors(errors: Iterable[tuple[int | None, str | None, str | None]]) -> list[ErrorGroup]:
    """Groups of errors, given as row, code and message; the largest group first."""
    groups: dict[tuple[str, str], ErrorGroup] = {}
    for row, code, message in errors:
        text = (message or "")[:MAX_MESSAGE_CHARS]
        key = (code or "", NUMBER.sub("0", text))
        group = groups.setdefault(key, ErrorGroup(code or "", text))
        group.num_seen += 1
        group.count = str(group.num_seen)
        if row is not None and len(group.rows) < SHOWN_ROWS:
            group.rows.append(row)
    return sorted(groups.values(), key=lambda group: -group.num_seen)[:MAX_GROUPS]


def _count(groups: Sequence[ErrorGroup], codes: dict[str, int], *, is_whole: bool) -> None:
    """Count the rows of groups that were made of a part of all errors, by the number of rows with each code."""
    if is_whole:
        return
    for group in groups:
        is_only = sum(other.code == group.code for other in groups) == 1
        group.count = str(codes.get(group.code, group.num_seen)) if is_only else f"{group.num_seen}+"
