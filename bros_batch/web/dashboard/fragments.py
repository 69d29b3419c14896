"""Pieces of HTML that pages are made of. Whatever comes from a user is escaped here, by `escape`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from html import escape

from bros_batch.db.tables import Job
from bros_batch.web.dashboard.rates import Rate

STATUS_WORDS = {
    "validating": "reading",
    "in_progress": "running",
    "finalizing": "writing files",
    "cancelling": "cancelling",
}


def badge(status: str) -> str:
    word = STATUS_WORDS.get(status, status)
    return f'<span class="badge {escape(status)}">{escape(word)}</span>'


def progress_bar(job: Job) -> str:
    """Green what succeeded, red what failed, grey what was not run."""

    def percent(count: int) -> str:
        return f"{100 * count / job.total if job.total else 0:.2f}%"

    not_run = job.cancelled + job.expired
    label = f"{job.succeeded} of {job.total} lines done, {job.failed} failed, {not_run} not run"
    return (
        f'<div class="bar" role="progressbar" aria-label="{label}" aria-valuemin="0" '
        f'aria-valuemax="{job.total}" aria-valuenow="{job.ended}">'
        f'<i class="good" style="width:{percent(job.succeeded)}"></i>'
        f'<i class="bad" style="width:{percent(job.failed)}"></i>'
        f'<i class="left" style="width:{percent(not_run)}"></i></div>'
    )


def job_row(job: Job, rate: Rate, now_s: float) -> str:
    """One job in the list: a table row on a desk, a card on a phone."""
    name = escape(job.name or job.id)
    shown_id = f"<small>{escape(job.id)}</small>" if job.name else ""
    counts = [f"{number(job.succeeded)} / {number(job.total)}"]
    counts += [f'<b class="wrong">{number(job.failed)} failed</b>'] if job.failed else []
    counts += [f"{number(job.cancelled)} cancelled"] if job.cancelled else []
    counts += [f"{number(job.expired)} expired"] if job.expired else []
    pace = f"{number(round(rate.tokens_per_s))} tok/s" if rate.tokens_per_s is not None else ""
    eta = f"{duration(rate.eta_s)} left" if rate.eta_s is not None else ended_note(job)
    return (
        f'<a class="job" href="/jobs/{escape(job.id)}" data-id="{escape(job.id)}">'
        f'<span class="name">{name}{shown_id}</span>'
        f'<span class="status">{badge(job.status)}</span>'
        f'<span class="progress">{progress_bar(job)}'
        f"<small>{' · '.join(counts)}</small></span>"
        f'<span class="pace">{pace}<small>{eta}</small></span>'
        f'<span class="created">{ago(job.created_at, now_s)}</span></a>'
    )


def ended_note(job: Job) -> str:
    ended_at = job.completed_at or job.cancelled_at or job.expired_at or job.failed_at
    if ended_at is None or job.status not in ("completed", "cancelled", "expired", "failed"):
        return ""
    return f"took {duration(ended_at - job.created_at)}"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values side by side; the values are HTML."""
    return (
        '<dl class="facts">'
        + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
        + "</dl>"
    )


def table(heads: Iterable[str], rows: Iterable[Iterable[object]], css: str = "") -> str:
    """A table of plain values."""
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{'' if cell is None else escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    cells = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="plain {css}">{cells}</table></div>'


def number(value: int) -> str:
    """With thin spaces between the thousands, which no language reads as a decimal point."""
    return f"{value:,}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    """Two figures at most: `42 s`, `3 min`, `2 h 10 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def ago(then_s: float, now_s: float) -> str:
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(then_s))
    return f'<time title="{shown}">{duration(now_s - then_s)} ago</time>'
