"""From results to rows: read a group of results, record them in one transaction, then remove them from Redis.

This order makes it safe. If a worker dies before the commit, the next run finds all of the results; if it dies after
the commit, the next run finds the rows ended, changes nothing, and removes what is left in Redis.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import ResponseError
from sqlalchemy.exc import DataError, IntegrityError, InternalError, ProgrammingError

from bros_batch.db import item_results
from bros_batch.db.connections import reading, writing
from bros_batch.db.item_results import FinishedItem
from bros_batch.documents.item_requests import JobRequests
from bros_batch.jobs.computed_answers import ComputedAnswers
from bros_batch.jobs.cpu_limit import limited_lines
from bros_batch.jobs.finished_item import finished_item
from bros_batch.jobs.limited_requests import limited_job_requests
from bros_batch.jobs.locks import Lock
from bros_batch.jobs.streams import remove_recorded
from bros_batch.jobs.task_run import Progress, TaskRun
from bros_batch.jobs.worker import Worker
from bros_batch.request_error import RequestError
from engine.wire.decoding import DECODE_ERRORS
from engine.wire.item_messages import ItemResult, decode_item_result
from engine.wire.redis_keys import RECORD_GROUP, RESULTS_KEY

log = logging.getLogger("bros.record")

READ_ENTRIES = 256
# After a group that was much smaller, more results are on their way. A transaction for every few of them would cost
# more than the rest of the work.
GATHER_S = 0.05
# One consumer name for all workers: a lock lets one of them record at a time, and what it had read when it died is
# found under this name at once, without waiting until it counts as idle.
CONSUMER = "recorder"
# Errors that are about the row itself and not about the connection: to try again would not help.
UNSTORABLE = (DataError, IntegrityError, InternalError, ProgrammingError, OverflowError, ValueError)


@dataclass(frozen=True, slots=True)
class ResultEntry:
    """An entry of the results stream, with the stream and the entry of its item.

    `result` is None if it could not be read.
    """

    id: bytes
    items_stream: bytes
    item_entry_id: bytes
    result: ItemResult | None


def record(
    worker: Worker,
    until_s: float,
    lock: Lock | None = None,
    after_group: Callable[[], None] | None = None,
) -> TaskRun:
    """Record results until there are none or `time.monotonic()` reaches `until_s`.

    `after_group` is called each time a group of results has left Redis.
    """
    recorder = _Recorder(worker)
    start = b"0"  # first what a recorder that died had read
    while True:
        entries = _read(worker.redis, start)
        if not entries:
            if start == b">":
                return recorder.task_run(Progress.DONE)
            start = b">"
            continue
        recorder.record_entries(entries)
        if after_group is not None:
            after_group()
        if time.monotonic() >= until_s:
            return recorder.task_run(Progress.MORE)
        if lock is not None:
            lock.renew()
        if len(entries) < READ_ENTRIES // 2 and not recorder.has_ended_a_job:
            time.sleep(GATHER_S)


def _read(redis: Redis, start: bytes) -> list[ResultEntry]:
    for _ in range(2):
        try:
            answer: Any = redis.xreadgroup(RECORD_GROUP, CONSUMER, {RESULTS_KEY: start}, count=READ_ENTRIES)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            try:
                redis.xgroup_create(RESULTS_KEY, RECORD_GROUP, id="0", mkstream=True)
            except ResponseError as exists:
                if "BUSYGROUP" not in str(exists):
                    raise
            continue
        return [_entry(*entry) for _, page in answer or () for entry in page]
    return []


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> ResultEntry:
    if not fields:  # removed from the stream since it was read
        return ResultEntry(entry_id, b"", b"", None)
    result: ItemResult | None
    try:
        result = decode_item_result(fields.get(b"p", b""))
        if not _plausible(result):
            raise msgspec.DecodeError("its numbers are out of range")
    except DECODE_ERRORS as error:
        log.error(
            "result %s can't be read and is dropped; its item will run again: %s", entry_id.decode(), error
        )
        result = None
    return ResultEntry(entry_id, fields.get(b"s", b""), fields.get(b"x", b""), result)


def _plausible(result: ItemResult) -> bool:
    """Whether the numbers of a result fit into the columns that store them."""
    counts = (result.epoch, result.prompt_tokens, result.cached_tokens)
    return 0 < result.item_id < 2**63 and all(0 <= count < 2**31 for count in counts)


class _Recorder:
    """Records groups of results and counts what they changed."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._model = worker.model
        self._requests: dict[str, JobRequests | RequestError] = {}
        self._changed = 0
        self._finalizing: list[str] = []
        self._preparing: set[str] = set()  # models of which items waited for an answer that is there now

    @property
    def has_ended_a_job(self) -> bool:
        return bool(self._finalizing)

    def task_run(self, progress: Progress) -> TaskRun:
        return TaskRun(
            progress, prepare=sorted(self._preparing), finalize=self._finalizing, changed=self._changed
        )

    def record_entries(self, entries: Sequence[ResultEntry]) -> None:
        answers = ComputedAnswers(self._worker)
        finished = self._finished([entry.result for entry in entries if entry.result is not None], answers)
        try:
            self._commit(finished, answers)
        except UNSTORABLE as error:
            log.error("a result can't be stored (%s); trying them one by one", error)
            for item in finished:
                try:
                    self._commit([item], answers)
                except UNSTORABLE:
                    log.exception("the result of item %d can't be stored and is dropped", item.id)
        self._preparing.update(answers.settle())
        items = [
            (entry.items_stream, entry.item_entry_id)
            for entry in entries
            if entry.item_entry_id and entry.items_stream.startswith(b"bros:items:")
        ]
        remove_recorded(self._worker.redis, [entry.id for entry in entries], items)

    def _commit(self, finished: Sequence[FinishedItem], answers: ComputedAnswers) -> None:
        with writing(self._worker.database) as connection:
            done = item_results.finish_items(connection, finished, time.time())
            answers.store(connection, finished)
        self._changed += done.changed
        self._finalizing += done.finalizing

    def _finished(self, results: Sequence[ItemResult], answers: ComputedAnswers) -> list[FinishedItem]:
        with reading(self._worker.database) as connection:
            origins = item_results.item_origins(connection, [result.item_id for result in results])
            new_jobs = {origin.job_id for origin in origins.values()} - self._requests.keys()
            defaults = item_results.defaults_of(connection, new_jobs) if new_jobs else {}
        for origin in origins.values():
            if origin.job_id not in self._requests:
                self._requests[origin.job_id] = limited_job_requests(
                    origin.endpoint, origin.model, origin.ingest_form, defaults.get(origin.job_id, {})
                )
        finished = []
        with limited_lines():
            for result in results:
                item_origin = origins.get(result.item_id)
                if item_origin is not None:
                    whole, reused = answers.completed(result, item_origin.model)
                    requests = self._requests[item_origin.job_id]
                    finished.append(finished_item(whole, item_origin, requests, self._model, reused))
        return finished
