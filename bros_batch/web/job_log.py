"""The log of a job in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bros_batch.db.table_rows import JobEvent
from bros_batch.web.formats import counted, duration, number


def log_lines(events: Iterable[JobEvent]) -> list[tuple[float, str, str]]:
    """The time, the kind and the sentence of each event, the latest first.

    The kind of a call of a webhook has a second word, `completed` or `failed`.
    """
    return [(each.at, _kind(each), log_sentence(each)) for each in events][::-1]


def _kind(event: JobEvent) -> str:
    if event.kind != "webhook":
        return event.kind
    return f"webhook {'completed' if _is_success(event.detail) else 'failed'}"


def _is_success(call: Mapping[str, Any]) -> bool:
    return call["status"] is not None and 200 <= call["status"] < 300


def log_sentence(event: JobEvent) -> str:
    """What an event of a job tells."""
    kind, detail = event.kind, event.detail
    total, succeeded, without = (
        int(detail.get(name) or 0) for name in ("total", "succeeded", "without_result")
    )
    ended = _ended(total, succeeded, without)
    match kind:
        case "created":
            return "Submitted"
        case "read":
            unreadable = f", of which {number(without)} cannot be run" if without else ""
            return f"The input was read: {counted(total, 'row')}{unreadable}"
        case "first_result":
            return "First result"
        case "paused":
            return f"Paused: {ended}"
        case "resumed":
            return "Resumed"
        case "imported":
            return f"Came from another server: {ended}"
        case "rerun":
            return f"Run again: {counted(total - succeeded - without, 'row')}"
        case "finalizing":
            return "No row is left to run; the files are written"
        case "completed":
            return f"Finished: {ended}"
        case "expired":
            return f"Expired: {ended}"
        case "cancelling":
            return "Cancelled by a user"
        case "cancelled":
            return f"Stopped: {ended}"
        case "failed":
            return "Failed: the input has no row that can be run"
        case "webhook":
            return _webhook(event.at, detail)
    return kind


def _ended(total: int, succeeded: int, without: int) -> str:
    if total == 1:
        return (
            "its row is done" if succeeded else "its row has no result" if without else "its row is not done"
        )
    done = f"{number(succeeded)} of {counted(total, 'row')} done"
    return f"{done}, {number(without)} without a result" if without else done


def _webhook(at_s: float, detail: Mapping[str, Any]) -> str:
    """An attempt to tell a webhook that the job has ended."""
    url, status, next_at = detail["url"], detail["status"], detail["next_at"]
    if _is_success(detail):
        return f"Webhook {url} was told: status {status}"
    problem = detail["problem"] or f"status {status}"
    pause = f"the next one follows after {duration(next_at - at_s)}" if next_at else "it is given up"
    return f"Webhook call failed ({problem}); {pause}: {url}"
