"""From results to rows: read a batch, write what they say in one transaction, then take them out of Redis.

The order makes it safe: a recorder that dies before the commit leaves everything for the next one; after it, the
next one finds the rows ended, changes nothing, and takes out what was left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import ResponseError
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, IntegrityError, InternalError, ProgrammingError

from bros_batch.db import item_results
from bros_batch.db.connections import reading, writing
from bros_batch.db.item_results import FinishedItem, ItemOrigin
from bros_batch.db.states import ItemStatus
from bros_batch.documents.item_requests import JobRequests, job_requests
from bros_batch.jobs.streams import Turn, acknowledge
from bros_batch.openai_api.batch_output import request_id
from bros_batch.openai_api.completion_response import ResponseHead, result_body
from bros_batch.request_error import RequestError
from bros_batch.settings import Settings
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.protocol import ENGINE_GROUP, RECORD_GROUP, RESULTS_KEY, ItemResult, decode_item_result

log = logging.getLogger("bros.record")

READ_ENTRIES = 256
# One name for all: turns see that one recorder runs at a time, and what it left unfinished when it died is then
# found under this name at once, without waiting for it to seem idle.
CONSUMER = "recorder"
# The row's own fault, not the connection's: trying again would not help.
UNSTORABLE = (DataError, IntegrityError, InternalError, ProgrammingError, OverflowError, ValueError)


@dataclass(frozen=True, slots=True)
class Entry:
    """A result as it stands in the stream, with the delivery it answers."""

    id: bytes
    stream: bytes
    delivery: bytes
    result: ItemResult | None


@dataclass(slots=True)
class Tally:
    """What a turn did. `more`: it ended because its time did. `finalizing`: jobs whose last item ended here."""

    read: int = 0
    changed: int = 0
    more: bool = False
    finalizing: list[str] = field(default_factory=list)


def record(
    database: Engine,
    redis: Redis,
    settings: Settings,
    text: ModelTokenizer,
    until_s: float,
    turn: Turn | None = None,
    after_batch: Callable[[], None] | None = None,
) -> Tally:
    """Record results until there are none or `time.monotonic()` reaches `until_s`. `after_batch` is called each
    time some have left Redis."""
    tally = Tally()
    recorder = _Recorder(database, redis, settings, text)
    start = b"0"  # first what a dead recorder had read
    while True:
        entries = _read(redis, start)
        if not entries:
            if start == b">":
                return tally
            start = b">"
            continue
        recorder.record(entries, tally)
        if after_batch is not None:
            after_batch()
        if time.monotonic() >= until_s:
            tally.more = True
            return tally
        if turn is not None:
            turn.renew()


def _read(redis: Redis, start: bytes) -> list[Entry]:
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


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    if not fields:  # taken out of the stream since it was read
        return Entry(entry_id, b"", b"", None)
    result: ItemResult | None
    try:
        result = decode_item_result(fields.get(b"p", b""))
        if not _plausible(result):
            raise msgspec.DecodeError("its numbers are out of range")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.error(
            "result %s can't be read and is dropped; its item will be run again: %s", entry_id.decode(), error
        )
        result = None
    return Entry(entry_id, fields.get(b"s", b""), fields.get(b"x", b""), result)


def _plausible(result: ItemResult) -> bool:
    """Whether its numbers fit where numbers of this kind are stored."""
    counts = (result.epoch, result.prompt_tokens, result.cached_tokens)
    return 0 < result.item_id < 2**63 and all(0 <= count < 2**31 for count in counts)


class _Recorder:
    def __init__(self, database: Engine, redis: Redis, settings: Settings, text: ModelTokenizer) -> None:
        self._database = database
        self._redis = redis
        self._settings = settings
        self._text = text
        self._requests: dict[str, JobRequests | RequestError] = {}

    def record(self, entries: Sequence[Entry], tally: Tally) -> None:
        tally.read += len(entries)
        results = [entry.result for entry in entries if entry.result is not None]
        outcomes = self._outcomes(results)
        try:
            self._commit(outcomes, tally)
        except UNSTORABLE as error:
            log.error("a result can't be stored (%s); trying one by one", error)
            for outcome in outcomes:
                try:
                    self._commit([outcome], tally)
                except UNSTORABLE:
                    log.exception("the result of item %d can't be stored and is dropped", outcome.item_id)
        acknowledge(self._redis, RESULTS_KEY, RECORD_GROUP, [entry.id for entry in entries])
        for stream in {entry.stream for entry in entries if entry.stream.startswith(b"bros:items:")}:
            ids = [entry.delivery for entry in entries if entry.stream == stream and entry.delivery]
            acknowledge(self._redis, stream, ENGINE_GROUP, ids)

    def _commit(self, outcomes: Sequence[FinishedItem], tally: Tally) -> None:
        with writing(self._database) as connection:
            finished = item_results.finish_items(connection, outcomes, time.time())
        tally.changed += finished.changed
        tally.finalizing += finished.finalizing

    def _outcomes(self, results: Sequence[ItemResult]) -> list[FinishedItem]:
        with reading(self._database) as connection:
            known = item_results.item_origins(connection, [result.item_id for result in results])
            new_jobs = {item.job_id for item in known.values()} - self._requests.keys()
            defaults = item_results.defaults_of(connection, new_jobs) if new_jobs else {}
        for item in known.values():
            if item.job_id not in self._requests:
                self._requests[item.job_id] = _requests_of(item, defaults.get(item.job_id, {}))
        outcomes = []
        for result in results:
            row = known.get(result.item_id)
            # A cancelled job's lines are ended by `finalize`; what engines say of them is not needed.
            if row is not None and result.error_code != "batch_cancelled":
                outcomes.append(self._outcome(result, row))
        return outcomes

    def _outcome(self, result: ItemResult, item: ItemOrigin) -> FinishedItem:
        outcome = FinishedItem(result.item_id, result.epoch, item.job_id, ItemStatus.FAILED)
        if result.error_code is not None:
            message = _clean(result.error_message or result.error_code)
            return replace(outcome, error_code=_clean(result.error_code)[:64], error_message=message)
        try:
            requests = self._requests[item.job_id]
            if isinstance(requests, RequestError):
                raise requests
            sampling = requests.sampling_of(item.body or "", self._settings.default_max_tokens)
            head = ResponseHead(
                item.endpoint, request_id(result.item_id, result.epoch), item.model, int(time.time())
            )
            body = result_body(head, self._text, sampling, result)
            encoded = msgspec.json.encode(body).decode()
        except (
            RequestError,
            ValueError,
            TypeError,
            LookupError,
            OverflowError,
            msgspec.MsgspecError,
        ) as error:
            message = _clean(f"The engine's output can't be read: {error}")
            return replace(outcome, error_code="engine_lost", error_message=message)
        return replace(
            outcome,
            status=ItemStatus.SUCCEEDED,
            result=encoded,
            prompt_tokens=result.prompt_tokens,
            cached_tokens=result.cached_tokens,
            output_tokens=sum(len(choice.token_ids) for choice in result.choices),
        )


def _requests_of(item: ItemOrigin, defaults: dict[str, Any]) -> JobRequests | RequestError:
    try:
        return job_requests(item.endpoint, item.model, item.ingest_form, defaults)
    except RequestError as error:
        return error


def _clean(message: str) -> str:
    """Text that every database takes."""
    return message.replace("\0", "\\0").encode(errors="replace").decode()[:2000]
