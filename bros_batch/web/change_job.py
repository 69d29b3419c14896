"""Changes of a job that users ask for through the API or the dashboard."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bros_batch.db import job_control, jobs, rerun
from bros_batch.db.allowed_changes import Change
from bros_batch.db.rerun import CannotRerun
from bros_batch.db.states import ENDED_JOB, IllegalTransition
from bros_batch.db.table_rows import File, Job
from bros_batch.jobs.withdraw import withdraw_job
from bros_batch.jobs.worker import Worker
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.audit import log_change
from bros_batch.web.bulk_limits import check_bulk_limits
from bros_batch.web.errors import ApiError, not_found
from bros_batch.web.owners import visible_owner

logger = logging.getLogger(__name__)

REDIS_PATIENCE_S = 2.0
TAKE_BACK_S = 5.0  # in all, for Redis and the database

CHANGES: dict[Change, Callable[[Connection, str], Job]] = {
    "cancel": job_control.cancel_job,
    "pause": job_control.pause_job,
    "resume": job_control.resume_job,
}


async def change_job(request: Request, job_id: str, change: Change) -> Job:
    """Change the status of a job, and dispatch its follow-up task, if it has one.

    Raises ApiError 404 for an unknown job, and 409 if its status does not allow the change.
    """
    if change == "rerun":
        return await rerun_rows(request, job_id)
    state, seen = app_state(request), visible_owner(request)

    def query(connection: Connection) -> Job:
        _check_visible(connection, job_id, seen)
        try:
            return CHANGES[change](connection, job_id)
        except IllegalTransition as error:
            message = f"Cannot {change} the batch '{job_id}': {error}."
            raise ApiError(409, message, param="batch_id", code="illegal_transition") from None
        except LookupError:
            raise not_found("batch", job_id, "batch_id") from None

    job = await state.write(query)
    log_change(request.scope, f"job.{change}", job=job_id)
    if change in ("cancel", "pause"):
        with contextlib.suppress(TimeoutError):  # it goes on, but nobody waits for it
            await state.threads.run(lambda: _take_back(state, job), TAKE_BACK_S)
    if change == "cancel":
        state.dispatcher.send("finalize", job_id)
    elif change == "resume":
        state.dispatcher.send("prepare", job.model)
    return job


async def rerun_rows(request: Request, job_id: str, rows: Sequence[int] | None = None) -> Job:
    """Compute rows of a job again: those with these numbers, or all without a result.

    Raises ApiError 404 for an unknown job, 409 if its status does not allow that or no row can run, 400 for a row that
    does not exist or could not be read, and 429 if these are too many for the key of the request.
    """
    state, seen = app_state(request), visible_owner(request)

    def query(connection: Connection) -> tuple[Job, list[File]]:
        _check_visible(connection, job_id, seen)
        if (job := jobs.get_job(connection, job_id)) is not None:
            more = job.counts.without_result if rows is None else len(set(rows))
            check_bulk_limits(connection, request, more, noun="rerun", is_job=job.status in ENDED_JOB)
        try:
            return rerun.rerun_rows(connection, job_id, rows)
        except CannotRerun as error:
            message = f"Cannot rerun rows of the batch '{job_id}'. {error}"
            if error.is_conflict:
                raise ApiError(409, message, param="batch_id", code="illegal_transition") from None
            raise ApiError(400, message, param="rows", code="invalid_request") from None
        except LookupError:
            raise not_found("batch", job_id, "batch_id") from None

    job, old_files = await state.write(query)
    # After the commit: a row without content would be a broken file, but content without a row only takes up space.
    for file in old_files:
        await run_in_threadpool(Path(file.path).unlink, missing_ok=True)
    log_change(request.scope, "job.rerun", job=job_id)
    state.dispatcher.send("prepare", job.model)
    return job


def _check_visible(connection: Connection, job_id: str, owner: str | None) -> None:
    if owner is not None and jobs.get_job(connection, job_id, owner) is None:
        raise not_found("batch", job_id, "batch_id")


def _take_back(state: AppState, job: Job) -> None:
    """Take the job's items back from the stream, here and now: a task could wait for seconds behind others."""
    url = state.settings.resolved_redis_url
    with Redis.from_url(
        url, socket_connect_timeout=REDIS_PATIENCE_S, socket_timeout=REDIS_PATIENCE_S
    ) as redis:
        try:
            withdraw_job(Worker(state.settings, state.database, redis), job.id, job.model)
        except (RedisError, DBAPIError) as error:
            logger.warning("the queued items of %s will be taken back later: %s", job.id, error)
