"""From pending items to queued ones: claim, tokenize, add to the model's stream.

    claim (one short transaction: queued, epoch + 1)  ->  template, tokenize  ->  XADD

If a worker dies in between, items are queued in the database but in no stream; the sweep finds those. A worker that is
only slow, or was stopped, must not add items that the sweep has returned in the meantime: a claim is good for half of
`lost_after_s`, by the clock of Redis, and has to be renewed in the database after that.
"""

from __future__ import annotations

import time

import msgspec

from bros_batch.db import item_results, pending_items
from bros_batch.db.connections import reading, writing
from bros_batch.db.item_results import FinishedItem
from bros_batch.db.pending_items import QueuedItem, RunnableJob
from bros_batch.db.states import ItemStatus
from bros_batch.documents.content_key import content_keys
from bros_batch.documents.error_messages import storable
from bros_batch.documents.form import DOCUMENT
from bros_batch.documents.item_requests import JobRequests
from bros_batch.jobs.claim_items import CLAIM_ITEMS, claim_most_urgent, make_room
from bros_batch.jobs.cpu_limit import LINE_CPU_LIMIT_S, CpuLimitExceeded, cpu_limit, limited_lines
from bros_batch.jobs.fair_shares import FairShares
from bros_batch.jobs.generation import ensure_generation
from bros_batch.jobs.limited_requests import limited_job_requests
from bros_batch.jobs.locks import Lock
from bros_batch.jobs.prefix_order import prompt_order
from bros_batch.jobs.queue_room import RecentHeartbeats, queue_room
from bros_batch.jobs.reuse import PreparedItem, Reuse
from bros_batch.jobs.streams import enqueue, redis_time_ms
from bros_batch.jobs.task_run import Progress, TaskRun
from bros_batch.jobs.withdraw import take_back_waiting, withdraw_job
from bros_batch.jobs.worker import Worker
from bros_batch.request_error import RequestError
from engine.wire.item_messages import encode

ENQUEUE_BYTES = 1024**2
LAST_CLAIM_S = 0.2  # what is claimed later is seldom done in time, and is claimed again by the next run


def prepare(worker: Worker, model: str, until_s: float, lock: Lock | None = None) -> TaskRun:
    """Fill the stream of a model with a few seconds of work, or until `time.monotonic()` reaches `until_s`."""
    ensure_generation(worker)
    preparer = _Preparer(worker, model, until_s)
    alive = RecentHeartbeats(worker.redis)
    shares = FairShares(worker.redis, model)
    while True:
        preparer.reuse.release_waiting()
        room = queue_room(worker, model, alive).free
        if not room:
            if make_room(worker, model, shares):
                continue
            return preparer.task_run(Progress.DONE)
        preparer.claims_end_ms = _claims_end_ms(worker)
        claimed, outranked = claim_most_urgent(worker, model, min(room, CLAIM_ITEMS), shares)
        if not claimed:
            return preparer.task_run(Progress.DONE)
        take_back_waiting(worker, model, outranked)
        for job, queued in claimed:
            preparer.prepare_items(job, queued)
        _withdraw_stopped(worker, [job.id for job, _ in claimed])
        if time.monotonic() >= until_s - LAST_CLAIM_S:
            return preparer.task_run(Progress.MORE)
        if lock is not None:
            lock.renew()


def _claims_end_ms(worker: Worker) -> float:
    """Until when claims that are made now can be relied on, by the clock of Redis."""
    return redis_time_ms(worker.redis) + worker.settings.lost_after_s * 1000 / 2


def _withdraw_stopped(worker: Worker, job_ids: list[str]) -> None:
    """Take back the items of jobs that were paused while their items were prepared.

    Whoever pauses a job first commits that and then removes its items, and prepare first adds items and then looks at
    the job. So one of the two finds them.
    """
    with reading(worker.database) as connection:
        stopped = pending_items.stopped_jobs(connection, job_ids)
    for job_id, model in stopped:
        withdraw_job(worker, job_id, model)


class _Preparer:
    """Makes stream entries of claimed items and counts what became of them."""

    def __init__(self, worker: Worker, model: str, until_s: float) -> None:
        self._worker = worker
        self._until_s = until_s
        self.claims_end_ms = 0.0
        self._model = worker.model
        self.reuse = Reuse(worker, model, self._model)
        self._queued = 0
        self._failed = 0
        self._reused = 0
        self._finalizing: list[str] = []

    def task_run(self, progress: Progress) -> TaskRun:
        return TaskRun(
            progress,
            finalize=self._finalizing,
            queued=self._queued,
            failed=self._failed,
            reused=self._reused,
        )

    def prepare_items(self, job: RunnableJob, queued: list[QueuedItem]) -> None:
        """Enqueue items until the time is up. Items that cannot be prepared end, and the rest become pending again."""
        requests = limited_job_requests(job.endpoint, job.model, job.ingest_form, job.defaults)
        scope = self.reuse.scope_of(job)
        prepared: list[PreparedItem] = []
        ended: list[FinishedItem] = []
        size = done = 0
        try:
            with limited_lines():
                for position, item in enumerate(queued):
                    try:
                        if isinstance(requests, RequestError):
                            raise requests
                        with cpu_limit(LINE_CPU_LIMIT_S):
                            ready = self._prepared(job, requests, item, scope)
                    except RequestError as error:
                        ended.append(_failure(job, item, error.code, error.message))
                    except CpuLimitExceeded:
                        message = f"The line takes more than {LINE_CPU_LIMIT_S:g} s of CPU time to prepare."
                        ended.append(_failure(job, item, "invalid_request", message))
                    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
                        message = f"The line can't be prepared: {error}"
                        ended.append(_failure(job, item, "invalid_request", message))
                    else:
                        prepared.append(ready)
                        size += len(ready.payload)
                    time_is_up = time.monotonic() >= self._until_s
                    if size >= ENQUEUE_BYTES or time_is_up or position + 1 == len(queued):
                        ended += self._enqueue(job, requests, prepared)
                        prepared, size, done = [], 0, position + 1
                        if time_is_up:
                            break
        finally:
            ended_ids = {item.id for item in ended}
            unused = [item for item in queued[done:] if item.id not in ended_ids]
            if unused or ended:
                with writing(self._worker.database) as connection:
                    finished = item_results.finish_items(connection, ended, time.time())
                    pending_items.release_items(connection, [(item.id, item.epoch) for item in unused])
                reused = sum(item.status == ItemStatus.SUCCEEDED for item in ended)
                self._reused += reused
                self._failed += finished.changed - reused
                self._finalizing += finished.finalizing

    def _enqueue(
        self, job: RunnableJob, requests: JobRequests | RequestError, prepared: list[PreparedItem]
    ) -> list[FinishedItem]:
        """Add items to the stream, except those whose claims ended meanwhile and that others have claimed since.

        Returns those that end at once, because their answers are known.
        """
        if isinstance(requests, RequestError) or not prepared:
            return []
        settled = self.reuse.settle(job, requests, prepared)
        redis = self._worker.redis
        # Every other group the other way round, so that it begins with the prefixes that the last one ended with.
        is_descending = prepared[0].item.line_no // CLAIM_ITEMS % 2 == 1
        entries = sorted(
            settled.entries, key=lambda entry: prompt_order(entry.payload), reverse=is_descending
        )
        while not enqueue(redis, job.model, entries, self.claims_end_ms):
            self.claims_end_ms = _claims_end_ms(self._worker)
            with writing(self._worker.database) as connection:
                claims = ((entry.item_id, entry.epoch) for entry in entries)
                ours = pending_items.renew_claims(connection, claims, time.time())
            entries = [entry for entry in entries if (entry.item_id, entry.epoch) in ours]
        self._queued += len(entries)
        return settled.ended

    def _prepared(
        self, job: RunnableJob, requests: JobRequests, item: QueuedItem, scope: bytes | None
    ) -> PreparedItem:
        work = requests.engine_requests(self._model, item.body, item.line_no)
        keys = [] if scope is None else content_keys(work, scope)
        memo = self.reuse.memo(keys, work).encoded() if keys else b""
        try:
            entry = work.as_item(item.id, item.epoch, job.id, job.priority, job.deadline_at, memo, job.owner)
            payload = encode(msgspec.structs.replace(entry, lane="rt") if job.runs_as_chat else entry)
            return PreparedItem(item, work, keys, payload)
        except (msgspec.MsgspecError, OverflowError) as error:
            raise RequestError(f"The line can't be sent to an engine: {error}.") from None


def _failure(job: RunnableJob, item: QueuedItem, code: str, message: str) -> FinishedItem:
    place = f"{'Row' if job.ingest_form == DOCUMENT else 'Line'} {item.line_no}"
    named = message if message.startswith(place) else f"{place}: {message}"
    return FinishedItem(
        item.id, item.epoch, job.id, ItemStatus.FAILED, error_code=code, error_message=storable(named)
    )
