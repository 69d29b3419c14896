"""From pending items to deliveries: claim, make tokens, add to the model's stream.

    claim (one short transaction: queued, epoch + 1)  ->  template, tokenise  ->  XADD

A worker that dies between the first and the last leaves queued items without a delivery; the sweep finds those.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec
from redis import Redis
from sqlalchemy import Engine

from bros_batch.db import item_results, pending_items
from bros_batch.db.connections import writing
from bros_batch.db.item_results import FinishedItem
from bros_batch.db.pending_items import QueuedItem, RunnableJob
from bros_batch.db.states import ItemStatus
from bros_batch.documents.item_requests import JobRequests, job_requests
from bros_batch.jobs.streams import Turn, deliver, ensure_generation
from bros_batch.request_error import RequestError
from bros_batch.settings import Settings
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.protocol import ItemRequest, encode, items_key

CLAIM_ITEMS = 256
CLAIM_BYTES = 16 * 1024**2
SLICE_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a turn did. `more`: it ended because its time did. `finalizing`: jobs whose last item failed here."""

    delivered: int
    failed: int
    more: bool
    finalizing: list[str]


@dataclass(slots=True)
class _Tally:
    delivered: int = 0
    failed: int = 0
    finalizing: list[str] = field(default_factory=list)


def prepare(
    database: Engine,
    redis: Redis,
    settings: Settings,
    text: ModelTokenizer,
    model: str,
    until_s: float,
    turn: Turn | None = None,
) -> Prepared:
    """Fill the model's stream up to its high-water mark, or until `time.monotonic()` reaches `until_s`."""
    tally = _Tally()
    ensure_generation(database, redis)
    max_model_len = min(text.max_model_len, settings.max_model_len or text.max_model_len)
    room = settings.queue_high_water - int(redis.xlen(items_key(model)))
    while room > 0:
        claimed = _claim(database, model, min(room, CLAIM_ITEMS))
        if not claimed:
            return Prepared(tally.delivered, tally.failed, False, tally.finalizing)
        for job, claims in claimed:
            _prepare_claims(database, redis, settings, text, job, claims, max_model_len, until_s, tally)
        if time.monotonic() >= until_s:
            return Prepared(tally.delivered, tally.failed, True, tally.finalizing)
        if turn is not None:
            turn.renew()
        room = settings.queue_high_water - int(redis.xlen(items_key(model)))
    return Prepared(tally.delivered, tally.failed, False, tally.finalizing)


def _claim(database: Engine, model: str, limit: int) -> list[tuple[RunnableJob, list[QueuedItem]]]:
    claimed = []
    with writing(database) as connection:
        for job in pending_items.runnable_jobs(connection, model):
            # Lines may be megabytes each: by the file's average, a claim fits in memory.
            average_bytes = max(job.ingest_offset // max(job.ingest_line, 1), 1)
            fitting = max(min(limit, CLAIM_BYTES // average_bytes), 1)
            claims = pending_items.claim_items(connection, job.id, fitting, time.time())
            if claims:
                claimed.append((job, claims))
                limit -= len(claims)
            if limit <= 0 or fitting < limit:
                break
    return claimed


def _prepare_claims(
    database: Engine,
    redis: Redis,
    settings: Settings,
    text: ModelTokenizer,
    job: RunnableJob,
    claims: list[QueuedItem],
    max_model_len: int,
    until_s: float,
    tally: _Tally,
) -> None:
    requests = _requests_of(job)
    payloads: list[tuple[int, int, bytes]] = []
    failures: list[FinishedItem] = []
    size = done = 0
    try:
        for position, claim in enumerate(claims):
            try:
                if isinstance(requests, RequestError):
                    raise requests
                payload = _payload(settings, text, job, requests, claim, max_model_len)
            except RequestError as error:
                failures.append(_failure(job, claim, error.code, error.message))
            except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
                failures.append(
                    _failure(job, claim, "invalid_request", f"The line can't be prepared: {error}")
                )
            else:
                payloads.append((claim.id, claim.epoch, payload))
                size += len(payload)
            if size >= SLICE_BYTES or time.monotonic() >= until_s:
                deliver(redis, job.model, payloads)
                tally.delivered += len(payloads)
                payloads, size, done = [], 0, position + 1
                if time.monotonic() >= until_s:
                    break
        else:
            deliver(redis, job.model, payloads)
            tally.delivered += len(payloads)
            done = len(claims)
    finally:
        failed_ids = {failure.item_id for failure in failures}
        undelivered = [claim for claim in claims[done:] if claim.id not in failed_ids]
        if undelivered or failures:
            with writing(database) as connection:
                finished = item_results.finish_items(connection, failures, time.time())
                pending_items.release_items(connection, undelivered)
            tally.failed += finished.changed
            tally.finalizing += finished.finalizing


def _requests_of(job: RunnableJob) -> JobRequests | RequestError:
    try:
        return job_requests(job.endpoint, job.model, job.ingest_form, job.defaults)
    except RequestError as error:
        return error


def _payload(
    settings: Settings,
    text: ModelTokenizer,
    job: RunnableJob,
    requests: JobRequests,
    claim: QueuedItem,
    max_model_len: int,
) -> bytes:
    token_ids, request, sampling = requests.prepare(
        text, claim.body, claim.line_no, max_model_len, settings.default_max_tokens
    )
    try:
        return encode(
            ItemRequest(
                claim.id,
                claim.epoch,
                job.id,
                token_ids,
                sampling,
                n=request.num_choices,
                priority=job.priority,
                deadline_unix_s=job.deadline_at,
            )
        )
    except (msgspec.MsgspecError, OverflowError) as error:
        raise RequestError(f"The line can't be sent to an engine: {error}.") from None


def _failure(job: RunnableJob, claim: QueuedItem, code: str, message: str) -> FinishedItem:
    named = message if message.startswith(f"Line {claim.line_no}") else f"Line {claim.line_no}: {message}"
    clean = named.replace("\0", "\\0").encode(errors="replace").decode()
    return FinishedItem(
        claim.id, claim.epoch, job.id, ItemStatus.FAILED, error_code=code, error_message=clean[:2000]
    )
