"""A job as OpenAI's `batch` object, with our own fields after those of OpenAI."""

from __future__ import annotations

from typing import Any

from bros_batch.addresses import without_password
from bros_batch.db.in_flight import InFlight
from bros_batch.db.table_rows import Job
from bros_batch.documents.column_types import answer_types
from bros_batch.forecast import Forecast


def batch_object(
    job: Job,
    waiting_reason: str | None = None,
    forecast: Forecast | None = None,
    in_flight: InFlight | None = None,
) -> dict[str, Any]:
    """Return all fields of the object; unset ones are null.

    `request_counts` has OpenAI's names for what `item_counts` says in ours. Items that were cancelled or expired have
    not failed: only `item_counts` has them. `usage` has what was computed, and `reused` what was taken from earlier
    answers instead. `notify` lacks the query of the URL, which may hold a token. `forecast` is null unless the job is
    running and enough is known. `in_flight` is about the items of the job that engines hold: their number, the number
    of those that have output already, and the tokens of that output. It is null if there are none.
    """
    counts = job.counts
    total_tokens = job.prompt_tokens + job.output_tokens
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.endpoint,
        "model": job.model,
        "errors": {"object": "list", "data": job.errors} if job.errors else None,
        "input_file_id": job.input_file_id,
        "completion_window": job.completion_window,
        "status": job.status,
        "output_file_id": job.output_file_id,
        "error_file_id": job.error_file_id,
        "created_at": int(job.created_at),
        "in_progress_at": _seconds(job.in_progress_at),
        "expires_at": _seconds(job.expires_at),
        "finalizing_at": _seconds(job.finalizing_at),
        "completed_at": _seconds(job.completed_at),
        "failed_at": _seconds(job.failed_at),
        "expired_at": _seconds(job.expired_at),
        "cancelling_at": _seconds(job.cancelling_at),
        "cancelled_at": _seconds(job.cancelled_at),
        "request_counts": {
            "total": counts.total,
            "completed": counts.succeeded,
            "failed": counts.failed,
        },
        "usage": {
            "input_tokens": job.prompt_tokens,
            "input_tokens_details": {"cached_tokens": job.cached_tokens},
            "output_tokens": job.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": total_tokens,
        },
        "metadata": job.metadata,
        "name": job.name,
        "source": job.source,
        "answer_columns": answer_types(job.defaults),
        "line_form": job.ingest_form,
        "priority": job.priority,
        "deadline_at": _seconds(job.deadline_at),
        "paused_at": _seconds(job.paused_at),
        "rows_removed_at": _seconds(job.rows_removed_at),
        "waiting_reason": waiting_reason,
        "forecast": None if forecast is None else forecast.as_json(),
        "in_flight": None if in_flight is None else in_flight.as_json(),
        "item_counts": {
            "succeeded": counts.succeeded,
            "failed": counts.failed,
            "cancelled": counts.cancelled,
            "expired": counts.expired,
        },
        "fresh": job.fresh,
        "notify": without_password(job.notify_url) if job.notify_url else None,
        "reused": {
            "items": job.reused,
            "input_tokens": job.reused_prompt_tokens,
            "output_tokens": job.reused_output_tokens,
        },
    }


def _seconds(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s)
