"""The tasks: a few seconds each, ids as arguments, right however often they run.

pump (each second) -> prepare -> [engine] -> record -> finalize
sweep (each quarter of a minute) -> ingest, finalize where nobody attends to a job
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Literal, ParamSpec

from kombu.exceptions import OperationalError as BrokerError
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy.exc import OperationalError as DatabaseError

from bros_batch.db import engines, jobs, pending_items
from bros_batch.db.connections import get_engine, reading, writing
from bros_batch.db.states import JobStatus
from bros_batch.jobs.celery_app import app
from bros_batch.jobs.finalize import finalize as finalize_job
from bros_batch.jobs.ingest import Progress
from bros_batch.jobs.ingest import ingest as ingest_job
from bros_batch.jobs.prepare import prepare as prepare_items
from bros_batch.jobs.record import record as record_results
from bros_batch.jobs.streams import ensure_generation, get_redis, heartbeats, turn, withdraw_job
from bros_batch.jobs.sweep import sweep as sweep_all
from bros_batch.settings import Settings, get_settings
from bros_batch.text.tokenizer import load_tokenizer
from engine.wire.protocol import RESULTS_KEY, items_key

log = logging.getLogger("bros.tasks")

TURN_S = 2.0

TaskName = Literal["ingest", "prepare", "record", "finalize", "sweep", "pump"]
P = ParamSpec("P")


def dispatch(name: TaskName, *ids: str) -> bool:
    """Ask for a task. False, and a line in the log, when the broker can't be reached: what was to be done stands
    in the database, and the sweep will find it there."""
    try:
        app.send_task(f"bros.{name}", args=ids, retry=False, ignore_result=True)
    except (BrokerError, RedisError, OSError) as error:
        log.warning("could not ask for %s%s: %s", name, ids, error)
        return False
    return True


def patient(function: Callable[P, None]) -> Callable[P, None]:
    """A service that is away is one line in the log, not a traceback: the next tick tries again."""

    @wraps(function)
    def attempt(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (RedisConnectionError, RedisTimeoutError, DatabaseError) as error:
            log.warning("%s gave up for now: %s", function.__name__, str(error).splitlines()[0])

    return attempt


@app.task(name="bros.ingest")
@patient
def ingest(job_id: str) -> None:
    """Read on in a job's file."""
    settings = get_settings()
    progress = ingest_job(get_engine(), settings, job_id, time.monotonic() + TURN_S)
    if progress is Progress.MORE:
        dispatch("ingest", job_id)
    elif progress is Progress.DONE:
        dispatch("prepare", settings.model_name)


@app.task(name="bros.prepare")
@patient
def prepare(model: str) -> None:
    """Fill a model's stream."""
    settings, database, redis = get_settings(), get_engine(), get_redis()
    if model != settings.model_name:
        log.warning("no worker here has the tokeniser of %s", model)
        return
    with turn(redis, f"prepare:{model}") as mine:
        if mine is None:
            return
        text = load_tokenizer(settings.model)
        done = prepare_items(database, redis, settings, text, model, time.monotonic() + TURN_S, mine)
    for job_id in done.finalizing:
        dispatch("finalize", job_id)
    if done.more:
        dispatch("prepare", model)


@app.task(name="bros.record")
@patient
def record() -> None:
    """Write down the results there are."""
    settings, database, redis = get_settings(), get_engine(), get_redis()
    with turn(redis, "record") as mine:
        if mine is None:
            return
        text = load_tokenizer(settings.model)
        until_s = time.monotonic() + TURN_S
        tally = record_results(database, redis, settings, text, until_s, mine, _Refill(redis, settings))
    for job_id in tally.finalizing:
        dispatch("finalize", job_id)
    if tally.more:
        dispatch("record")


class _Refill:
    """Asks for prepare as soon as recording brings the model's stream under its low-water mark, once a fall: the
    engine is not to run dry until the next tick."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._asked = False

    def __call__(self) -> None:
        model = self._settings.model_name
        is_low = int(self._redis.xlen(items_key(model))) < self._settings.queue_low_water
        if is_low and not self._asked:
            dispatch("prepare", model)
        self._asked = is_low


@app.task(name="bros.finalize")
@patient
def finalize(job_id: str) -> None:
    """Write a job's files and end it."""
    settings, database = get_settings(), get_engine()
    with reading(database) as connection:
        job = jobs.get_job(connection, job_id)
    if job is None:
        return
    if job.status == JobStatus.CANCELLING:
        try:
            withdraw_job(database, get_redis(), job_id, job.model)
        except RedisError as error:
            log.warning("could not withdraw what is queued of %s: %s", job_id, error)
    if finalize_job(database, settings, job_id, time.monotonic() + TURN_S) is Progress.MORE:
        dispatch("finalize", job_id)


@app.task(name="bros.sweep")
@patient
def sweep() -> None:
    """See to what nobody asks for."""
    swept = sweep_all(get_engine(), get_redis(), get_settings())
    for job_id in swept.ingest:
        dispatch("ingest", job_id)
    for job_id in swept.finalize:
        dispatch("finalize", job_id)


@app.task(name="bros.pump")
@patient
def pump() -> None:
    """Start what has work to do. Cheap: a few keys and one indexed query."""
    settings, database, redis = get_settings(), get_engine(), get_redis()
    ensure_generation(database, redis)
    with reading(database) as connection:
        models = pending_items.models_with_work(connection)
    for model in models:
        if model == settings.model_name and int(redis.xlen(items_key(model))) < settings.queue_low_water:
            dispatch("prepare", model)
    if redis.xlen(RESULTS_KEY):
        dispatch("record")
    alive = heartbeats(redis)
    if alive:
        with writing(database) as connection:
            engines.upsert_engines(connection, alive, time.time())
