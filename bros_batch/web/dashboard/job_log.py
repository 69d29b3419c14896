"""The log of a job in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bros_batch.db.tables import JobEvent
from bros_batch.web.dashboard.formats import number


def log_lines(events: Iterable[JobEvent]) -> list[tuple[float, str, str]]:
    """The time, the kind and the sentence of each event, the latest first."""
    return [(each.at, each.kind, _sentence(each.kind, each.detail)) for each in events][::-1]


def _sentence(kind: str, detail: Mapping[str, Any]) -> str:
    total, succeeded, without = (
        int(detail.get(name) or 0) for name in ("total", "succeeded", "without_result")
    )
    ended = f"{number(succeeded)} of {_rows(total)} done" + (
        f", {number(without)} without a result" if without else ""
    )
    match kind:
        case "created":
            return "Submitted"
        case "read":
            unreadable = f", of which {number(without)} cannot be run" if without else ""
            return f"The input was read: {_rows(total)}{unreadable}"
        case "first_result":
            return "First result"
        case "paused":
            return f"Paused: {ended}"
        case "resumed":
            return "Resumed"
        case "imported":
            return f"Came from another server: {ended}"
        case "rerun":
            return f"Run again: {_rows(total - succeeded - without)}"
        case "finalizing":
            return f"No row is left to run: {ended}"
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
    return kind


def _rows(count: int) -> str:
    return f"{number(count)} row" if count == 1 else f"{number(count)} rows"
