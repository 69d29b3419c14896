"""The Celery tasks: each runs for a few seconds, takes ids as arguments, and may run any number of times.

pump (every second)  ->  prepare  ->  [engine]  ->  record  ->  finalize
sweep (every 15 seconds)  ->  ingest and finalize, for jobs that no run holds
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import Signature, signature
from typing import Literal, ParamSpec

from celery.signals import worker_init
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError

from bros_batch.db import engines, jobs, pending_items
from bros_batch.db.connections import reading, writing
from bros_batch.db.states import JobStatus
from bros_batch.first_line import first_line
from bros_batch.jobs.celery_app import app
from bros_batch.jobs.fair_shares import FairShares
from bros_batch.jobs.finalize import finalize as run_finalize
from bros_batch.jobs.generation import ensure_generation
from bros_batch.jobs.ingest import ingest as run_ingest
from bros_batch.jobs.locks import end_tick, try_lock
from bros_batch.jobs.outage import is_outage
from bros_batch.jobs.prepare import prepare as run_prepare
from bros_batch.jobs.queue_room import RecentHeartbeats, queue_room
from bros_batch.jobs.record import record as run_record
from bros_batch.jobs.streams import heartbeats
from bros_batch.jobs.sweep import sweep as run_sweep
from bros_batch.jobs.task_run import Progress, TaskRun
from bros_batch.jobs.withdraw import withdraw_job
from bros_batch.jobs.worker import Worker, get_worker, load_before_fork
from engine.wire.redis_keys import RESULTS_KEY

log = logging.getLogger("bros.tasks")

TIME_BUDGET_S = 2.0
ENGINE_FORGOTTEN_S = 24 * 3600.0
MAX_ID_CHARS = 4096  # the name of a model may be a path

TaskName = Literal["ingest", "prepare", "record", "finalize", "sweep", "pump"]
P = ParamSpec("P")


def dispatch(name: TaskName, *ids: str) -> bool:
    """Send a task to the broker. Returns False, and logs a warning, if the broker can't be reached: the database
    knows what has to be done, and the sweep will find it there."""
    try:
        app.send_task(f"bros.{name}", args=ids, retry=False, ignore_result=True)
    except (BrokerError, RedisError, OSError) as error:
        log.warning("could not dispatch %s%s: %s", name, ids, error)
        return False
    return True


def follow_up(run: TaskRun, name: TaskName, *ids: str) -> None:
    """Dispatch the tasks that a run asks for, and the same task again if its time budget was used up."""
    for job_id in run.ingest:
        dispatch("ingest", job_id)
    for model in run.prepare:
        dispatch("prepare", model)
    for job_id in run.finalize:
        dispatch("finalize", job_id)
    if run.progress is Progress.MORE:
        dispatch(name, *ids)


def tolerate_outage(function: Callable[P, None]) -> Callable[P, None]:
    """Log one line instead of a traceback while a service is away or the disk is full. The next tick tries again.

    A message whose arguments are not ids is dropped: whatever there is to do is in the database.
    """
    arguments = signature(function)

    @wraps(function)
    def attempt(*args: P.args, **kwargs: P.kwargs) -> None:
        if not _are_ids(arguments, args, kwargs):
            log.warning("%s was sent with unusable arguments and does nothing", function.__name__)
            return
        try:
            function(*args, **kwargs)
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("%s gave up for now: %s", function.__name__, first_line(error))

    return attempt


def _are_ids(arguments: Signature, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    try:
        bound = arguments.bind(*args, **kwargs)
    except TypeError:
        return False
    return all(
        isinstance(value, str) and len(value) <= MAX_ID_CHARS and value.isprintable()
        for value in bound.arguments.values()
    )


@worker_init.connect
def _load(**_signal: object) -> None:
    load_before_fork()


@app.task(name="bros.ingest")
@tolerate_outage
def ingest(job_id: str) -> None:
    """Continue reading the file of a job."""
    follow_up(run_ingest(get_worker(), job_id, time.monotonic() + TIME_BUDGET_S), "ingest", job_id)


@app.task(name="bros.prepare")
@tolerate_outage
def prepare(model: str) -> None:
    """Fill the stream of a model."""
    worker = get_worker()
    if model != worker.settings.model_name:
        log.warning("no worker here has the tokenizer of %s", model)
        return
    with try_lock(worker.redis, f"prepare:{model}") as lock:
        if lock is None:
            return
        run = run_prepare(worker, model, time.monotonic() + TIME_BUDGET_S, lock)
    follow_up(run, "prepare", model)


@app.task(name="bros.record")
@tolerate_outage
def record() -> None:
    """Record the results that are in Redis."""
    worker = get_worker()
    with try_lock(worker.redis, "record") as lock:
        if lock is None:
            return
        run = run_record(worker, time.monotonic() + TIME_BUDGET_S, lock, _Refill(worker))
    follow_up(run, "record")


class _Refill:
    """Dispatches prepare as soon as the model's stream runs low, once each time, so that the engine does not run out of
    items before the next tick."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._alive = RecentHeartbeats(worker.redis)
        self._dispatched = False

    def __call__(self) -> None:
        is_low = queue_room(self._worker, self._worker.settings.model_name, self._alive).is_low
        if is_low and not self._dispatched:
            dispatch("prepare", self._worker.settings.model_name)
        self._dispatched = is_low


@app.task(name="bros.finalize")
@tolerate_outage
def finalize(job_id: str) -> None:
    """Write the files of a job and end it."""
    worker = get_worker()
    with reading(worker.database) as connection:
        job = jobs.get_job(connection, job_id)
    if job is None:
        return
    if job.ended < job.total or job.status == JobStatus.CANCELLING:  # it was cancelled, or it has expired
        try:
            withdraw_job(worker, job_id, job.model)
        except RedisError as error:
            log.warning("could not withdraw the queued items of %s: %s", job_id, error)
    follow_up(run_finalize(worker, job_id, time.monotonic() + TIME_BUDGET_S), "finalize", job_id)


@app.task(name="bros.sweep")
@tolerate_outage
def sweep() -> None:
    """Do periodic maintenance."""
    worker = get_worker()
    end_tick(worker.redis, "sweep")
    follow_up(run_sweep(worker), "sweep")


@app.task(name="bros.pump")
@tolerate_outage
def pump() -> None:
    """Dispatch the tasks that have work to do. This is cheap: a few keys and one indexed query."""
    worker = get_worker()
    end_tick(worker.redis, "pump")
    ensure_generation(worker)
    model = worker.settings.model_name
    with reading(worker.database) as connection:
        runnable = pending_items.runnable_jobs(connection, model)
        divided_among = FairShares(worker.redis, model).owners
        has_urgent = bool(pending_items.outranked_jobs(connection, model, runnable, divided_among))
        stopped = pending_items.stopped_jobs(connection)
    # Whoever paused them could not take their items back, or prepare added some after that.
    for job_id, job_model in stopped:
        withdraw_job(worker, job_id, job_model)
    if runnable.jobs and (has_urgent or queue_room(worker, model).is_low):
        dispatch("prepare", model)
    if worker.redis.xlen(RESULTS_KEY):
        dispatch("record")
    alive = heartbeats(worker.redis)
    if alive:
        with writing(worker.database) as connection:
            engines.upsert_engines(connection, alive, time.time())
            engines.delete_silent_engines(connection, time.time() - ENGINE_FORGOTTEN_S)
