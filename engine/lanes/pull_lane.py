"""The BE lane: pulls work items from a Redis stream while there is room, and pushes results to another.

An entry stays in the stream until its result is recorded in the database. While an engine works on it, it renews its
claim; an engine that dies stops renewing, and another (or its next life) takes the entry over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from engine.core.terms import FinishedEvent, TokenEvent
from engine.lanes.admission import Admission
from engine.lanes.exchange import Exchange
from engine.lanes.pulled_item import Delivery
from engine.lanes.result_queue import ResultQueue
from engine.wire import protocol
from engine.wire.protocol import WorkResult

log = logging.getLogger("engine.pull")

HEARTBEAT_INTERVAL_S = 2.0
HEARTBEAT_EXPIRES_S = 15
READ_BLOCK_MS = 1000
RECONNECT_FIRST_S = 0.1
RECONNECT_LAST_S = 5.0
GIVE_BACK_TIMEOUT_S = 5.0
LONG_IDLE_MS = 10**9  # an idle time that any engine's claim timeout is below: the entry is free to take


@dataclass(frozen=True, slots=True)
class PullLaneConfig:
    """`max_in_flight` entries are held at most: what the engine runs and a little that waits.

    `about` is what a heartbeat tells of this engine.
    """

    model: str
    engine_id: str
    max_in_flight: int
    claim_timeout_s: float
    max_deliveries: int
    admission: Admission
    about: dict[str, Any]


class PullLane:
    """Runs as tasks of the I/O thread; survives a Redis that goes away and comes back, even empty."""

    def __init__(self, config: PullLaneConfig, exchange: Exchange, redis: Redis) -> None:
        self._config = config
        self._exchange = exchange
        self._redis: Any = redis  # its annotations give every answer as a union of all shapes
        self._key = protocol.items_key(config.model)
        self._deliveries: dict[bytes, Delivery] = {}
        self._results = ResultQueue(redis, self._key)
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._started_unix_s = time.time()
        self._draining = False

    def start(self) -> None:
        """Begin to pull."""
        jobs: list[Callable[[], Awaitable[None]]] = [
            self._pull,
            self._results.push_for_ever,
            self._renew_claims,
            self._heartbeat,
            self._hear_cancellations,
        ]
        self._tasks = [asyncio.create_task(self._persist(job), name=job.__name__) for job in jobs]

    async def drain(self) -> None:
        """Stop pulling; push the results there are; give back what is unfinished, for another engine to take."""
        self._draining = True
        running = set(self._tasks)
        while running:  # a client library may swallow a cancellation: say it again until it is heard
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=0.5)
        unfinished = list(self._deliveries)
        for entry_id in unfinished:
            self._abort(self._deliveries.pop(entry_id))
        try:
            async with asyncio.timeout(GIVE_BACK_TIMEOUT_S):
                await self._results.flush()
                if unfinished:
                    await self._claim("released", 0, unfinished, idle=LONG_IDLE_MS, retrycount=0, justid=True)
                await self._redis.delete(protocol.engine_key(self._config.engine_id))
        except (RedisError, OSError, TimeoutError) as error:
            log.warning(
                "could not give back %d items (%s); they are taken over later", len(unfinished), error
            )
        await self._redis.aclose()

    async def _persist(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run a job for ever; when Redis fails under it, start it again with growing pauses."""
        pause_s = RECONNECT_FIRST_S
        while not self._draining:
            started_s = time.monotonic()
            try:
                await job()
            except ResponseError as error:
                if "NOGROUP" in str(error):
                    log.info("the stream's group is gone (an empty Redis came back); making it again")
                else:
                    log.error("%s failed: %s; trying again in %.1f s", job.__name__, error, pause_s)
            except (RedisConnectionError, OSError) as error:
                log.warning("Redis can't be reached (%s); trying again in %.1f s", error, pause_s)
            except RedisError as error:
                log.error("%s failed: %s; trying again in %.1f s", job.__name__, error, pause_s)
            if time.monotonic() - started_s > RECONNECT_LAST_S:
                pause_s = RECONNECT_FIRST_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RECONNECT_LAST_S)

    # Work in ----------------------------------------------------------------------------------------------------

    async def _pull(self) -> None:
        await self._make_group()
        await self._take_over(own=True)
        next_takeover_s = 0.0
        while True:
            await self._has_room.wait()
            if time.monotonic() >= next_takeover_s:
                await self._take_over(own=False)
                next_takeover_s = time.monotonic() + self._config.claim_timeout_s / 2
            room = self._config.max_in_flight - len(self._deliveries)
            if room <= 0:
                self._has_room.clear()
                continue
            me = self._config.engine_id
            answer = await self._redis.xreadgroup(
                protocol.ENGINE_GROUP, me, {self._key: ">"}, count=room, block=READ_BLOCK_MS
            )
            for entry_id, fields in _entries(answer):
                self._start(entry_id, fields)

    async def _make_group(self) -> None:
        try:
            await self._redis.xgroup_create(self._key, protocol.ENGINE_GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # it is there: as it should be
                raise

    async def _claim(self, consumer: str, min_idle_ms: int, entry_ids: list[bytes], **options: Any) -> Any:
        return await self._redis.xclaim(
            self._key, protocol.ENGINE_GROUP, consumer, min_idle_ms, entry_ids, **options
        )

    async def _take_over(self, *, own: bool) -> None:
        """Claim entries whose engine is gone: with `own`, those of this engine's earlier life, at once."""
        me = self._config.engine_id
        min_idle_ms = 0 if own else int(self._config.claim_timeout_s * 1000)
        pending = await self._redis.xpending_range(
            self._key,
            protocol.ENGINE_GROUP,
            min="-",
            max="+",
            count=self._config.max_in_flight,
            consumername=me if own else None,
            idle=min_idle_ms,
        )
        times = {p["message_id"]: p["times_delivered"] for p in pending}
        wanted = [entry_id for entry_id in times if entry_id not in self._deliveries]
        if not wanted:
            return
        claimed = await self._claim(me, min_idle_ms, wanted)
        log.info("took over %d items of %s", len(claimed), "its earlier life" if own else "another engine")
        for entry_id, fields in claimed:
            if fields is None:  # recorded and deleted meanwhile
                continue
            if times[entry_id] >= self._config.max_deliveries:
                # It was being worked on each time an engine went away: it fails, so that it kills no more.
                message = f"an engine went away {times[entry_id]} times while it worked on this item"
                self._fail_unread(entry_id, fields, "engine_lost", message)
            else:
                self._start(entry_id, fields)

    def _start(self, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        try:
            item = protocol.decode_work_item(fields[b"p"])
        except (msgspec.DecodeError, KeyError, UnicodeDecodeError) as error:
            message = f"the work item can't be read: {error}"
            self._fail_unread(entry_id, fields, "invalid_request", message)
            return
        delivery = Delivery(entry_id, item)
        refused = self._config.admission.refusal(item.token_ids)
        if refused:
            self._results.put(entry_id, delivery.failure(self._config.engine_id, *refused))
            return
        self._deliveries[entry_id] = delivery
        for i, request in enumerate(delivery.requests()):

            def sink(event: TokenEvent | FinishedEvent, index: int = i) -> None:
                delivery.hear(index, event)
                if delivery.is_over and entry_id in self._deliveries:
                    self._end(delivery, delivery.result(self._config.engine_id))

            self._exchange.submit(request, sink)

    def _fail_unread(self, entry_id: bytes, fields: dict[bytes, bytes], code: str, message: str) -> None:
        """Answer an entry without reading its payload; the plain fields name the item."""
        log.error("stream entry %s: %s", entry_id.decode(), message)
        try:
            item_id, epoch = int(fields[b"i"]), int(fields[b"e"])
        except (KeyError, ValueError):
            return  # names no item: the sweep finds the item lost
        result = WorkResult(
            item_id, epoch, "", self._config.engine_id, error_code=code, error_message=message
        )
        self._results.put(entry_id, result)

    def _end(self, delivery: Delivery, result: WorkResult) -> None:
        del self._deliveries[delivery.entry_id]
        self._has_room.set()
        self._results.put(delivery.entry_id, result)

    def _abort(self, delivery: Delivery) -> None:
        for request_id in delivery.unfinished():
            self._exchange.abort(request_id)

    # Keeping claims, heartbeat, cancellation ----------------------------------------------------------------------

    async def _renew_claims(self) -> None:
        while True:
            await asyncio.sleep(self._config.claim_timeout_s / 3)
            if self._deliveries:
                await self._claim(self._config.engine_id, 0, list(self._deliveries), justid=True)

    async def _heartbeat(self) -> None:
        key = protocol.engine_key(self._config.engine_id)
        while True:
            about = {
                "engine_id": self._config.engine_id,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started_at": self._started_unix_s,
                **self._config.about,
                "stats": await self._exchange.stats(),
            }
            await self._redis.set(key, msgspec.msgpack.encode(about), ex=HEARTBEAT_EXPIRES_S)
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def _hear_cancellations(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(protocol.CANCEL_CHANNEL)
            async for message in pubsub.listen():
                if message["type"] == "message":
                    self._cancel_job(message["data"].decode(errors="replace"))

    def _cancel_job(self, job_id: str) -> None:
        for delivery in [d for d in self._deliveries.values() if d.item.job_id == job_id]:
            self._abort(delivery)
            cancelled = ("batch_cancelled", "the batch was cancelled")
            self._end(delivery, delivery.failure(self._config.engine_id, *cancelled))


def _entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of an XREADGROUP answer on one stream, in either of the protocol's two shapes."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [entry for batch in answer.values() for entries in batch for entry in entries]
    return [entry for _, entries in answer for entry in entries]
