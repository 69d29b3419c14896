"""Item puller: pulls items of jobs from a Redis stream while the engine has room, and pushes their results to another.

An entry stays in the stream until its result is recorded in the database. An engine renews its claim on an entry while
it works on the item. If the engine dies, it stops renewing, and another engine, or the same one after a restart, takes
the entry over.
"""

from __future__ import annotations

import asyncio
import contextlib
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

from engine.core.events import FinishedEvent, TokenEvent
from engine.lanes.exchange import Exchange
from engine.lanes.loop_watch import TICK_S
from engine.lanes.pulled_item import PulledItem, failed_item
from engine.lanes.result_queue import ResultQueue
from engine.wire import protocol
from engine.wire.limits import EngineLimits, problem_with_item
from engine.wire.protocol import ItemResult

log = logging.getLogger("engine.pull")

HEARTBEAT_INTERVAL_S = 2.0
HEARTBEAT_EXPIRES_S = 15
READ_BLOCK_MS = 1000
RECONNECT_FIRST_S = 0.1
RECONNECT_LAST_S = 5.0
RELEASE_TIMEOUT_S = 5.0
LONG_IDLE_MS = 10**9  # longer than any engine's claim timeout, so that any engine may take the entry


@dataclass(frozen=True, slots=True)
class ItemPullerConfig:
    """Settings of an item puller.

    `max_in_flight` limits the entries that it holds: those of running requests and a few that wait. After
    `max_attempts` engines went away while they worked on an item, the item fails. `about` is added to each heartbeat.
    """

    model: str
    engine_id: str
    max_in_flight: int
    claim_timeout_s: float
    max_attempts: int
    limits: EngineLimits
    about: dict[str, Any]


class ItemPuller:
    """Pulls items and pushes results, as tasks of the I/O thread. Survives a Redis that restarts, even empty."""

    def __init__(self, config: ItemPullerConfig, exchange: Exchange, redis: Redis) -> None:
        self._config = config
        self._exchange = exchange
        self._redis: Any = redis  # its annotations type every reply as a union of all shapes
        self._key = protocol.items_key(config.model)
        self._items: dict[bytes, PulledItem] = {}
        self._results = ResultQueue(redis, self._key)
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._started_unix_s = time.time()
        self._draining = False

    def start(self) -> None:
        """Begin to pull items."""
        workers: list[Callable[[], Awaitable[None]]] = [
            self._pull,
            self._results.push_forever,
            self._renew_claims,
            self._send_heartbeats,
            self._listen_for_cancellations,
        ]
        self._tasks = [
            asyncio.create_task(self._keep_running(worker), name=worker.__name__) for worker in workers
        ]

    async def drain(self) -> None:
        """Stop pulling, push the remaining results, and release unfinished entries to other engines."""
        self._draining = True
        running = set(self._tasks)
        while running:  # a client library may swallow a cancellation, so repeat it until the task ends
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=0.5)
        unfinished = list(self._items)
        for entry_id in unfinished:
            self._abort(self._items.pop(entry_id))
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._results.flush()
                if unfinished:
                    await self._claim("released", 0, unfinished, idle=LONG_IDLE_MS, retrycount=0, justid=True)
                await self._redis.delete(protocol.engine_key(self._config.engine_id))
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("could not release %d items (%s); they are taken over later", len(unfinished), error)
        await self._redis.aclose()

    async def _keep_running(self, worker: Callable[[], Awaitable[None]]) -> None:
        """Run `worker` until the engine drains. When an error of Redis ends it, restart it after a growing pause."""
        pause_s = RECONNECT_FIRST_S
        while not self._draining:
            started_s = time.monotonic()
            try:
                await worker()
            except ResponseError as error:
                if "NOGROUP" in str(error):
                    log.info("the consumer group is gone (Redis has lost its data); creating it again")
                else:
                    log.error("%s failed: %s; trying again in %.1f s", worker.__name__, error, pause_s)
            except (RedisConnectionError, OSError) as error:
                log.warning("Redis cannot be reached (%s); trying again in %.1f s", error, pause_s)
            except RedisError as error:
                log.error("%s failed: %s; trying again in %.1f s", worker.__name__, error, pause_s)
            if time.monotonic() - started_s > RECONNECT_LAST_S:
                pause_s = RECONNECT_FIRST_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RECONNECT_LAST_S)

    # Items in, results out --------------------------------------------------------------------------------------

    async def _pull(self) -> None:
        await self._make_group()
        await self._take_over(own=True)
        next_takeover_s = 0.0
        while True:
            await self._has_room.wait()
            if (
                self._exchange.watch.is_stuck
            ):  # what it took would wait here, and another engine can compute it
                await asyncio.sleep(TICK_S)
                continue
            if time.monotonic() >= next_takeover_s:
                await self._take_over(own=False)
                next_takeover_s = time.monotonic() + self._config.claim_timeout_s / 2
            room = self._config.max_in_flight - len(self._items)
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
            if "BUSYGROUP" not in str(error):  # BUSYGROUP: the group exists already
                raise

    async def _claim(self, consumer: str, min_idle_ms: int, entry_ids: list[bytes], **options: Any) -> Any:
        return await self._redis.xclaim(
            self._key, protocol.ENGINE_GROUP, consumer, min_idle_ms, entry_ids, **options
        )

    async def _take_over(self, *, own: bool) -> None:
        """Claim entries whose engine is gone. With `own`, claim those of this engine from before a restart, at once."""
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
        wanted = [entry_id for entry_id in times if entry_id not in self._items]
        if not wanted:
            return
        claimed = await self._claim(me, min_idle_ms, wanted)
        log.info("took over %d items of %s", len(claimed), "its last run" if own else "another engine")
        for entry_id, fields in claimed:
            if fields is None:  # recorded and deleted in the meantime
                continue
            if times[entry_id] >= self._config.max_attempts:
                # An engine was working on it each time one went away. It fails, lest it be the cause.
                message = f"an engine went away {times[entry_id]} times while it worked on this item"
                self._fail_unread(entry_id, fields, "engine_lost", message)
            else:
                self._start(entry_id, fields)

    def _start(self, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        try:
            item = protocol.decode_item_request(fields[b"p"])
        except (msgspec.DecodeError, KeyError, UnicodeDecodeError) as error:
            message = f"the item cannot be decoded: {error}"
            self._fail_unread(entry_id, fields, "invalid_request", message)
            return
        problem = problem_with_item(item, self._config.limits)
        if problem is not None:
            self._results.put(
                entry_id, failed_item(item, self._config.engine_id, problem.code, problem.message)
            )
            return
        pulled = PulledItem(entry_id, item)
        self._items[entry_id] = pulled
        for i, request in enumerate(pulled.requests()):

            def sink(event: TokenEvent | FinishedEvent, index: int = i) -> None:
                pulled.record(index, event)
                if pulled.is_finished and entry_id in self._items:
                    self._end(pulled, pulled.result(self._config.engine_id))

            self._exchange.submit(request, sink)

    def _fail_unread(self, entry_id: bytes, fields: dict[bytes, bytes], code: str, message: str) -> None:
        """Push an error for an entry whose payload is not used; its plain fields identify the item."""
        log.error("stream entry %s: %s", entry_id.decode(), message)
        try:
            item_id, epoch = int(fields[b"i"]), int(fields[b"e"])
        except (KeyError, ValueError):
            return  # it identifies no item; the sweep finds the item lost
        result = ItemResult(
            item_id, epoch, "", self._config.engine_id, error_code=code, error_message=message
        )
        self._results.put(entry_id, result)

    def _end(self, pulled: PulledItem, result: ItemResult) -> None:
        del self._items[pulled.entry_id]
        self._has_room.set()
        self._results.put(pulled.entry_id, result)

    def _abort(self, pulled: PulledItem) -> None:
        for request_id in pulled.unfinished():
            self._exchange.abort(request_id)

    # Claims, heartbeats and cancellations -----------------------------------------------------------------------

    async def _renew_claims(self) -> None:
        while True:
            await asyncio.sleep(self._config.claim_timeout_s / 3)
            # The claims of a stuck engine lapse, so that another one takes its items over.
            if self._items and not self._exchange.watch.is_stuck:
                await self._claim(self._config.engine_id, 0, list(self._items), justid=True)

    async def _send_heartbeats(self) -> None:
        key = protocol.engine_key(self._config.engine_id)
        watch = self._exchange.watch
        stats: dict[str, Any] = {}
        while True:
            with contextlib.suppress(TimeoutError):  # a main loop that is stuck does not answer
                async with asyncio.timeout(HEARTBEAT_INTERVAL_S):
                    stats = await self._exchange.stats()
            about = {
                "engine_id": self._config.engine_id,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started_at": self._started_unix_s,
                **self._config.about,
                "late_s": watch.late_s,
                "is_stuck": watch.is_stuck,
                "stats": stats,
            }
            await self._redis.set(key, msgspec.msgpack.encode(about), ex=HEARTBEAT_EXPIRES_S)
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def _listen_for_cancellations(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(protocol.CANCEL_CHANNEL)
            async for message in pubsub.listen():
                if message["type"] == "message":
                    self._cancel_job(message["data"].decode(errors="replace"))

    def _cancel_job(self, job_id: str) -> None:
        for pulled in [p for p in self._items.values() if p.item.job_id == job_id]:
            self._abort(pulled)
            cancelled = ("batch_cancelled", "the batch was cancelled")
            self._end(pulled, pulled.failure(self._config.engine_id, *cancelled))


def _entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return the entries of an XREADGROUP reply about one stream, in either of the two shapes of the protocol."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [entry for batch in answer.values() for entries in batch for entry in entries]
    return [entry for _, entries in answer for entry in entries]
