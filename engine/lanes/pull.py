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
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from engine.core.request import Request
from engine.core.types import FinishedEvent, FinishReason, Lane, TokenEvent
from engine.lanes.exchange import Exchange
from engine.lanes.socket import position_logprobs, sampling_params
from engine.wire import protocol
from engine.wire.protocol import Choice, PositionLogprobs, WorkItem, WorkResult

log = logging.getLogger("engine.pull")

HEARTBEAT_INTERVAL_S = 2.0
HEARTBEAT_EXPIRES_S = 15
READ_BLOCK_MS = 1000
RECONNECT_FIRST_S = 0.1
RECONNECT_LAST_S = 5.0
LONG_IDLE_MS = 10**9  # an idle time that any engine's claim timeout is below: the entry is free to take


@dataclass(frozen=True, slots=True)
class PullLaneConfig:
    """`max_in_flight` entries are held at most: what the engine runs and a little that waits.

    `about` is what a heartbeat tells of this engine. `refusal` says why a prompt of so many tokens can't be served.
    """

    model: str
    engine_id: str
    vocab_size: int
    max_in_flight: int
    claim_timeout_s: float
    max_deliveries: int
    refusal: Callable[[int], str | None]
    about: dict[str, Any]


@dataclass(slots=True)
class Delivery:
    """A work item in the engine: its n outputs as they grow."""

    entry_id: bytes
    item: WorkItem
    token_ids: list[list[int]]
    logprobs: list[list[PositionLogprobs]]
    reasons: list[FinishReason | None]
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None


@dataclass(slots=True)
class _Outgoing:
    """Results to push, in order, and a bell for the task that pushes them."""

    entries: list[dict[str, bytes]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class PullLane:
    """Runs as tasks of the I/O thread; survives a Redis that goes away and comes back, even empty."""

    def __init__(self, config: PullLaneConfig, exchange: Exchange, redis: Redis) -> None:
        self.config = config
        self._exchange = exchange
        self._redis: Any = redis  # its annotations give every answer as a union of all shapes
        self._key = protocol.items_key(config.model)
        self._deliveries: dict[bytes, Delivery] = {}
        self._outgoing = _Outgoing()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._started_unix_s = time.time()
        self._draining = False

    def start(self) -> None:
        """Begin to pull."""
        jobs: list[Callable[[], Awaitable[None]]] = [
            self._pull,
            self._push_results,
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
            async with asyncio.timeout(5):
                await self._flush_results()
                if unfinished:
                    await self._redis.xclaim(
                        self._key,
                        protocol.ENGINE_GROUP,
                        "released",
                        0,
                        unfinished,
                        idle=LONG_IDLE_MS,
                        retrycount=0,
                        justid=True,
                    )
                await self._redis.delete(protocol.engine_key(self.config.engine_id))
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
            except (RedisError, OSError) as error:
                if time.monotonic() - started_s > RECONNECT_LAST_S:
                    pause_s = RECONNECT_FIRST_S
                if isinstance(error, ResponseError) and "NOGROUP" in str(error):
                    await self._make_group()
                    continue
                if isinstance(error, RedisConnectionError | OSError):
                    log.warning("Redis can't be reached (%s); trying again in %.1f s", error, pause_s)
                else:
                    log.error("%s failed: %s; trying again in %.1f s", job.__name__, error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, RECONNECT_LAST_S)

    async def _make_group(self) -> None:
        try:
            await self._redis.xgroup_create(self._key, protocol.ENGINE_GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        except (RedisError, OSError) as error:
            log.warning("could not create the stream's group: %s", error)
            await asyncio.sleep(RECONNECT_FIRST_S)

    # Work in --------------------------------------------------------------------------------------------

    async def _pull(self) -> None:
        await self._make_group()
        await self._take_over(own=True)
        await self._take_over(own=False)
        next_takeover_s = time.monotonic() + self.config.claim_timeout_s / 2
        while True:
            await self._has_room.wait()
            if time.monotonic() >= next_takeover_s:
                await self._take_over(own=False)
                next_takeover_s = time.monotonic() + self.config.claim_timeout_s / 2
            room = self.config.max_in_flight - len(self._deliveries)
            if room <= 0:
                self._has_room.clear()
                continue
            answer = await self._redis.xreadgroup(
                protocol.ENGINE_GROUP,
                self.config.engine_id,
                {self._key: ">"},
                count=room,
                block=READ_BLOCK_MS,
            )
            for entry_id, fields in _entries(answer):
                self._start(entry_id, fields)

    async def _take_over(self, *, own: bool) -> None:
        """Claim entries whose engine is gone: with `own`, those of this engine's earlier life, at once."""
        me = self.config.engine_id
        min_idle_ms = 0 if own else int(self.config.claim_timeout_s * 1000)
        pending = await self._redis.xpending_range(
            self._key,
            protocol.ENGINE_GROUP,
            min="-",
            max="+",
            count=self.config.max_in_flight,
            consumername=me if own else None,
            idle=min_idle_ms,
        )
        deliveries = {
            p["message_id"]: p["times_delivered"] for p in pending if p["message_id"] not in self._deliveries
        }
        if not deliveries:
            return
        claimed = await self._redis.xclaim(
            self._key, protocol.ENGINE_GROUP, me, min_idle_ms, list(deliveries)
        )
        log.info(
            "took over %d items from %s",
            len(claimed),
            "an earlier life" if own else "an engine that went away",
        )
        for entry_id, fields in claimed:
            if fields is None:
                continue
            if deliveries[entry_id] >= self.config.max_deliveries:
                self._give_up(entry_id, fields, deliveries[entry_id])
            else:
                self._start(entry_id, fields)

    def _start(self, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        try:
            item = protocol.decode_work_item(fields[b"p"])
        except (msgspec.DecodeError, KeyError, UnicodeDecodeError) as error:
            self._refuse_entry(entry_id, fields, "invalid_request", f"the work item can't be read: {error}")
            return
        delivery = Delivery(
            entry_id,
            item,
            token_ids=[[] for _ in range(item.n)],
            logprobs=[[] for _ in range(item.n)],
            reasons=[None] * item.n,
        )
        refused = self._refusal(item)
        if refused:
            self._push(delivery, self._failure(item.item_id, item.epoch, item.job_id, *refused))
            return
        self._deliveries[entry_id] = delivery
        now_s = time.monotonic()
        deadline_s = None if item.deadline_unix_s is None else item.deadline_unix_s - time.time() + now_s
        for i in range(item.n):
            sampling = sampling_params(item.sampling)
            if item.n > 1 and sampling.seed is not None:
                sampling = sampling_params(msgspec.structs.replace(item.sampling, seed=sampling.seed + i))
            request = Request(
                self._request_id(entry_id, i),
                Lane.BE,
                item.token_ids,
                sampling,
                arrival_s=now_s,
                priority=item.priority,
                deadline_s=deadline_s,
            )

            def sink(event: TokenEvent | FinishedEvent, index: int = i) -> None:
                self._on_event(delivery, index, event)

            self._exchange.submit(request, sink)

    def _refusal(self, item: WorkItem) -> tuple[str, str] | None:
        reason = self.config.refusal(len(item.token_ids))
        if reason:
            return ("context_length_exceeded" if item.token_ids else "invalid_request"), reason
        beyond = next((t for t in item.token_ids if t >= self.config.vocab_size), None)
        if beyond is not None:
            return (
                "invalid_request",
                f"token id {beyond} is outside the vocabulary of {self.config.vocab_size}",
            )
        return None

    @staticmethod
    def _request_id(entry_id: bytes, index: int) -> str:
        return f"b{entry_id.decode()}.{index}"

    # Results out ----------------------------------------------------------------------------------------

    def _on_event(self, delivery: Delivery, index: int, event: TokenEvent | FinishedEvent) -> None:
        if isinstance(event, TokenEvent):
            delivery.token_ids[index].append(event.token_id)
            logprobs = position_logprobs(event)
            if logprobs:
                delivery.logprobs[index].append(logprobs)
            return
        delivery.reasons[index] = event.reason
        delivery.prompt_tokens = event.num_prompt_tokens
        delivery.cached_tokens = max(delivery.cached_tokens, event.num_cached_tokens)
        if event.reason is FinishReason.ERROR:
            delivery.error = event.message or "the engine could not compute this item"
        if None not in delivery.reasons and delivery.entry_id in self._deliveries:
            del self._deliveries[delivery.entry_id]
            self._has_room.set()
            self._push(delivery, self._result(delivery))

    def _result(self, delivery: Delivery) -> WorkResult:
        item = delivery.item
        if delivery.error is not None:
            return self._failure(item.item_id, item.epoch, item.job_id, "invalid_request", delivery.error)
        choices = [
            Choice(ids, "stop" if reason is FinishReason.STOP else "length", logprobs or None)
            for ids, logprobs, reason in zip(
                delivery.token_ids, delivery.logprobs, delivery.reasons, strict=True
            )
        ]
        return WorkResult(
            item.item_id,
            item.epoch,
            item.job_id,
            self.config.engine_id,
            choices,
            prompt_tokens=delivery.prompt_tokens,
            cached_tokens=delivery.cached_tokens,
        )

    def _failure(self, item_id: int, epoch: int, job_id: str, code: str, message: str) -> WorkResult:
        return WorkResult(
            item_id, epoch, job_id, self.config.engine_id, error_code=code, error_message=message
        )

    def _give_up(self, entry_id: bytes, fields: dict[bytes, bytes], times: int) -> None:
        """An entry that was being worked on each time an engine went away fails, so that it kills no more."""
        message = f"an engine went away {times} times while it worked on this item"
        self._refuse_entry(entry_id, fields, "engine_lost", message)

    def _refuse_entry(self, entry_id: bytes, fields: dict[bytes, bytes], code: str, message: str) -> None:
        """Answer an entry without reading its payload; the plain fields name the item."""
        log.error("stream entry %s: %s", entry_id.decode(), message)
        try:
            failure = self._failure(int(fields[b"i"]), int(fields[b"e"]), "", code, message)
        except (KeyError, ValueError):
            return  # names no item: the sweep finds the item lost
        self._push_entry(entry_id, failure)

    def _push(self, delivery: Delivery, result: WorkResult) -> None:
        self._push_entry(delivery.entry_id, result)

    def _push_entry(self, entry_id: bytes, result: WorkResult) -> None:
        self._outgoing.entries.append({"p": protocol.encode(result), "s": self._key.encode(), "x": entry_id})
        self._outgoing.arrived.set()

    async def _push_results(self) -> None:
        while True:
            await self._outgoing.arrived.wait()
            self._outgoing.arrived.clear()
            await self._flush_results()

    async def _flush_results(self) -> None:
        """Push what is waiting. On an error everything is kept: a result pushed twice changes nothing."""
        entries = self._outgoing.entries[:]
        if not entries:
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for entry in entries:
                    pipe.xadd(protocol.RESULTS_KEY, entry)
                await pipe.execute()
        except BaseException:
            self._outgoing.arrived.set()
            raise
        del self._outgoing.entries[: len(entries)]
        if self._outgoing.entries:
            self._outgoing.arrived.set()

    # Keeping claims, heartbeat, cancellation ------------------------------------------------------------

    async def _renew_claims(self) -> None:
        while True:
            await asyncio.sleep(self.config.claim_timeout_s / 3)
            if self._deliveries:
                await self._redis.xclaim(
                    self._key,
                    protocol.ENGINE_GROUP,
                    self.config.engine_id,
                    0,
                    list(self._deliveries),
                    justid=True,
                )

    async def _heartbeat(self) -> None:
        key = protocol.engine_key(self.config.engine_id)
        while True:
            about = {
                "engine_id": self.config.engine_id,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started_at": self._started_unix_s,
                **self.config.about,
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
        cancelled = [d for d in self._deliveries.values() if d.item.job_id == job_id]
        for delivery in cancelled:
            del self._deliveries[delivery.entry_id]
            self._abort(delivery)
            self._push(
                delivery,
                self._failure(
                    delivery.item.item_id,
                    delivery.item.epoch,
                    job_id,
                    "batch_cancelled",
                    "the batch was cancelled",
                ),
            )
        if cancelled:
            self._has_room.set()

    def _abort(self, delivery: Delivery) -> None:
        for i, reason in enumerate(delivery.reasons):
            if reason is None:
                self._exchange.abort(self._request_id(delivery.entry_id, i))


def _entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of an XREADGROUP answer on one stream, in either of the protocol's two shapes."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [entry for batch in answer.values() for entries in batch for entry in entries]
    return [entry for _, entries in answer for entry in entries]
