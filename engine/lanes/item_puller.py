"""Item puller: pulls items of jobs from a Redis stream while the engine has room, and pushes their results to another.

An entry stays in the stream until its result is recorded in the database. An engine renews its claim on an entry while
it works on the item. If the engine dies, it stops renewing, and another engine, or the same one after a restart, takes
the entry over.

The job system takes an item back (its job was paused or cancelled, or has expired) by removing its entry. The engine
looks several times per second which entries are still its own, so no message to it can be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from engine.core import terms
from engine.core.events import FinishedEvent, TokenEvent
from engine.core.terms import SLO
from engine.lanes.exchange import Exchange
from engine.lanes.followed_items import FollowedItems
from engine.lanes.grammar_gate import GrammarGate, UnusableGrammar
from engine.lanes.heartbeat import Heartbeat
from engine.lanes.loop_watch import TICK_S
from engine.lanes.persistent_task import keep_running
from engine.lanes.pulled_item import PulledItem, failed_item
from engine.lanes.result_queue import ResultQueue
from engine.lanes.stream_claims import ALL_ENTRIES, StreamClaims
from engine.lanes.suspects import Suspects
from engine.step_mark import LastStep
from engine.wire import protocol
from engine.wire.limits import EngineLimits, problem_with_item
from engine.wire.protocol import Grammar, ItemResult
from engine.wire.stream_entries import describe, identity

log = logging.getLogger("engine.pull")

Fields = dict[bytes, bytes]

READ_BLOCK_MS = 1000
# A full engine looks this often whether items wait that are more urgent than those it holds, and for so many.
URGENT_INTERVAL_S = 0.25
URGENT_READ = 32
# An engine looks this often which entries are still its own. Of those that are not, items of which nothing has been
# computed end at once. The others have a moment to finish, because most of their work is done.
CHECK_INTERVAL_S = 0.25
FINISH_S = 0.75
READ_BLOCK_WITH_SUSPECTS_MS = 50  # the next one starts soon after another has ended
RELEASE_TIMEOUT_S = 5.0
LONG_IDLE_MS = 10**9  # longer than any engine's claim timeout, so that any engine may take the entry


@dataclass(frozen=True, slots=True)
class ItemPullerConfig:
    """Settings of an item puller.

    `max_in_flight` limits the entries that it holds: those of running requests and a few that wait. It takes in as many
    again if they have a higher priority than others it holds. After the engine died `max_attempts` times while it
    computed one item by itself, that item fails. `last_step` is the step in which the last run of this engine died.
    `about` is added to each heartbeat. Items of the RT lane have the SLO `default_slo`. `weights` is the identity
    of what the engine computes with.
    """

    model: str
    engine_id: str
    max_in_flight: int
    claim_timeout_s: float
    max_attempts: int
    limits: EngineLimits
    about: dict[str, Any]
    default_slo: SLO
    last_step: LastStep
    weights: str = ""


class ItemPuller:
    """Pulls items and pushes results, as tasks of the I/O thread. Survives a Redis that restarts, even empty."""

    def __init__(self, config: ItemPullerConfig, exchange: Exchange, redis: Redis, gate: GrammarGate) -> None:
        self._config = config
        self._exchange = exchange
        self._gate = gate
        self._compiling: set[asyncio.Task[None]] = set()  # wait for the grammars of items
        self._redis: Any = redis  # its annotations type every reply as a union of all shapes
        self._key = protocol.items_key(config.model)
        self._items: dict[bytes, PulledItem] = {}
        self._ready: deque[PulledItem] = deque()  # to be submitted, unless they have been taken back
        self._lost_at_s: dict[bytes, float] = {}  # since when an entry is not the engine's own any more
        self._claims = StreamClaims(redis, self._key, config.engine_id)
        self._suspects = Suspects(redis, config.model, config.last_step)
        self._results = ResultQueue(redis, self._key)
        about = {**config.about, "weights": config.weights, "max_in_flight": config.max_in_flight}
        self._heartbeat = Heartbeat(config.engine_id, about, exchange, redis, lambda: bool(self._items))
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._next_urgent_s = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to pull items."""
        workers: list[Callable[[], Awaitable[None]]] = [
            self._pull,
            self._results.push_forever,
            self._check_claims,
            self._heartbeat.send_heartbeats,
            self._heartbeat.measure_rate,
            FollowedItems(self._redis, self._items.values).show_outputs,
        ]
        self._tasks = [asyncio.create_task(keep_running(worker), name=worker.__name__) for worker in workers]

    async def drain(self) -> None:
        """Stop pulling, push the remaining results, and release unfinished entries to other engines."""
        running = {*self._tasks, *self._compiling}
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
                await self._heartbeat.end()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("could not release %d items (%s); they are taken over later", len(unfinished), error)
        await self._redis.aclose()

    # Items in, results out --------------------------------------------------------------------------------------

    async def _pull(self) -> None:
        await self._make_group()
        await self._suspects.count_deaths()
        await self._take_over(own=True)
        next_takeover_s = 0.0
        while True:
            if self._exchange.watch.is_stuck:  # what it took would wait here; another engine can compute it
                await asyncio.sleep(TICK_S)
                continue
            if time.monotonic() >= next_takeover_s:
                await self._take_over(own=False)
                next_takeover_s = time.monotonic() + self._config.claim_timeout_s / 2
            await self._submit_ready()
            await self._start_suspects()
            room = self._config.max_in_flight - len(self._items)
            if room <= 0 and not (room := await self._room_for_urgent()):
                self._has_room.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(URGENT_INTERVAL_S):
                        await self._has_room.wait()
                continue
            me = self._config.engine_id
            block_ms = (
                READ_BLOCK_WITH_SUSPECTS_MS if self._suspects.has_waiting(self._items) else READ_BLOCK_MS
            )
            answer = await self._redis.xreadgroup(
                protocol.ENGINE_GROUP, me, {self._key: ">"}, count=room, block=block_ms
            )
            await self._take_in(_entries(answer), {})

    async def _room_for_urgent(self) -> int:
        """How many of the next entries a full engine may read, because they are more urgent than items it holds."""
        now_s = time.monotonic()
        if now_s < self._next_urgent_s:
            return 0
        self._next_urgent_s = now_s + URGENT_INTERVAL_S
        priorities = [pulled.item.priority for pulled in self._items.values()]
        least = min(priorities)
        num_urgent = len(priorities) - priorities.count(least)
        room = min(self._config.max_in_flight - num_urgent, URGENT_READ)
        waiting = await self._claims.more_urgent(least, room) if room > 0 else 0
        if waiting:
            self._next_urgent_s = now_s  # there may be more
        return waiting

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
            count=ALL_ENTRIES if own else self._config.max_in_flight,
            consumername=me if own else None,
            idle=min_idle_ms,
        )
        times = {p["message_id"]: p["times_delivered"] for p in pending}
        ended = self._results.waiting()
        wanted = [entry_id for entry_id in times if entry_id not in self._items and entry_id not in ended]
        if not wanted:
            return
        # The starts that count: of runs whose deaths, if they died, are not known.
        uncounted = 1 if own and self._suspects.knows_last_step else 0
        starts = {entry_id: times[entry_id] - uncounted for entry_id in wanted}
        claimed = []
        for count, entry_ids in _by_count(starts, wanted):
            claimed += await self._claim(me, min_idle_ms, entry_ids, retrycount=max(0, count + 1))
        log.info("took over %d items of %s", len(claimed), "its last run" if own else "another engine")
        await self._take_in(
            [entry for entry in claimed if entry[1] is not None], starts
        )  # None: it was deleted

    async def _take_in(self, entries: list[tuple[bytes, Fields]], starts: Mapping[bytes, int]) -> None:
        """Take in entries that the engine has claimed. `starts`: how often each was started before, if it was. Suspects
        are submitted when it is their turn, all others next."""
        ids = [identity(fields) for _, fields in entries]
        records = await self._suspects.records(
            [found and found[0] for found in ids], [starts.get(entry_id, 0) for entry_id, _ in entries]
        )
        suspects: list[bytes] = []
        for (entry_id, fields), record in zip(entries, records, strict=True):
            if failure := record.failure(self._config.max_attempts):
                self._fail_unread(entry_id, fields, "engine_lost", failure)
            elif (pulled := self._start(entry_id, fields)) is None:
                continue
            elif record.is_suspect:
                self._suspects.add(entry_id, record)
                suspects.append(entry_id)
            else:
                pulled.was_started = entry_id in starts
                self._ready.append(pulled)
        for count, entry_ids in _by_count(starts, suspects):  # they have not been started after all
            await self._claim(self._config.engine_id, 0, entry_ids, retrycount=max(0, count), justid=True)

    async def _submit_ready(self) -> None:
        """Submit items as fast as the main loop takes them in."""
        while self._ready:
            await self._exchange.turn_of_bulk()
            pulled = self._ready.popleft()
            if self._items.get(pulled.entry_id) is pulled:  # it was not taken back in the meantime
                self._submit(pulled)

    async def _start_suspects(self) -> None:
        """Submit the suspects whose turn it is."""
        while (chosen := self._suspects.next_to_start(self._items)) is not None:
            entry_id, record = chosen
            options = {"retrycount": record.starts + 1, "justid": True}
            await self._claim(self._config.engine_id, 0, [entry_id], **options)
            if entry_id in self._items:
                self._suspects.has_started(entry_id)
                self._submit(self._items[entry_id], is_suspect=True)

    def _start(self, entry_id: bytes, fields: Fields) -> PulledItem | None:
        """Take in the item of an entry. Whatever the entry holds, nothing but its own item can fail."""
        try:
            item = protocol.decode_item_request(fields[b"p"])
        except msgspec.ValidationError as error:
            self._fail_unread(entry_id, fields, "invalid_request", f"the item cannot be read: {error}")
            return None
        except Exception as error:
            # The entry was damaged, not the line that it was made of. The sweep finds that it is gone, and the item is
            # prepared again, up to the limit of its attempts.
            self._remove_unreadable(entry_id, fields, repr(error))
            return None
        problem = problem_with_item(item, self._config.limits)
        if problem is not None:
            self._results.put(
                entry_id, failed_item(item, self._config.engine_id, problem.code, problem.message)
            )
            return None
        pulled = self._items[entry_id] = PulledItem(entry_id, item)
        return pulled

    def _submit(self, pulled: PulledItem, *, is_suspect: bool = False) -> None:
        """Submit an item, or, if a grammar of it is not compiled yet, do so later."""
        grammars: dict[Grammar, terms.Grammar] = {}
        try:
            for grammar in pulled.grammars():
                ready = self._gate.ready(grammar, pulled.asker)
                if ready is None:
                    task = asyncio.create_task(self._submit_when_compiled(pulled, is_suspect))
                    self._compiling.add(task)
                    task.add_done_callback(self._compiling.discard)
                    return
                grammars[grammar] = ready
        except UnusableGrammar as error:
            self._end(pulled, pulled.failure(self._config.engine_id, "invalid_request", str(error)))
            return
        self._submit_all(pulled, grammars, is_suspect)

    async def _submit_when_compiled(self, pulled: PulledItem, is_suspect: bool) -> None:
        """Submit an item once its grammars are compiled, unless it was taken back in the meantime."""
        grammars: dict[Grammar, terms.Grammar] = {}
        failed: ItemResult | None = None
        try:
            for grammar in pulled.grammars():
                grammars[grammar] = await self._gate.compiled_at_last(grammar, pulled.asker)
            await self._exchange.turn_of_bulk()
        except UnusableGrammar as error:
            failed = pulled.failure(self._config.engine_id, "invalid_request", str(error))
        if self._items.get(pulled.entry_id) is not pulled:
            return
        if failed is not None:
            self._end(pulled, failed)
        else:
            self._submit_all(pulled, grammars, is_suspect)

    def _submit_all(
        self, pulled: PulledItem, grammars: Mapping[Grammar, terms.Grammar], is_suspect: bool
    ) -> None:
        # An item that was started before may be what ended that engine: it runs as bulk, whose deaths are counted.
        is_rt = pulled.item.lane == "rt" and not pulled.was_started and not is_suspect
        slo = self._config.default_slo if is_rt else None
        for i, request in enumerate(pulled.requests(slo, grammars)):
            request.is_suspect = is_suspect
            self._exchange.submit(request, partial(self._take_event, pulled, i))

    def _take_event(self, pulled: PulledItem, index: int, event: TokenEvent | FinishedEvent) -> None:
        """Take in an event of one output of an item. If that fails, so does the item, and no other."""
        if isinstance(event, TokenEvent) and event.logprobs is None:  # most events
            pulled.token_ids[index].append(event.token_id)
            return
        try:
            pulled.record(index, event)
            if isinstance(event, FinishedEvent) and pulled.is_finished and pulled.entry_id in self._items:
                result = pulled.result(self._config.engine_id, self._config.weights)
                self._heartbeat.rate.count(pulled.num_tokens)
                self._end(pulled, result)
        except Exception as error:
            log.exception("the output of stream entry %s cannot be taken in", pulled.entry_id.decode())
            self._abort(pulled)
            message = f"the engine could not report its output: {type(error).__name__}"
            self._end(pulled, pulled.failure(self._config.engine_id, "engine_error", message))

    def _fail_unread(self, entry_id: bytes, fields: Fields, code: str, message: str) -> None:
        """Push an error for an entry whose payload is not used; its plain fields identify the item."""
        item = identity(fields)
        if item is None:
            self._remove_unreadable(entry_id, fields, message)
            return
        log.error("stream entry %s: %s", entry_id.decode(), message)
        result = ItemResult(*item, "", self._config.engine_id, error_code=code, error_message=message)
        self._results.put(entry_id, result)

    def _remove_unreadable(self, entry_id: bytes, fields: Fields, message: str) -> None:
        log.error(
            "stream entry %s cannot be read and is removed (%s): %s",
            entry_id.decode(),
            describe(fields),
            message,
        )
        self._results.remove(entry_id)

    def _end(self, pulled: PulledItem, result: ItemResult) -> None:
        self._results.put(pulled.entry_id, result)
        self._forget(pulled)

    def _forget(self, pulled: PulledItem) -> None:
        del self._items[pulled.entry_id]
        self._lost_at_s.pop(pulled.entry_id, None)
        self._has_room.set()

    def _abort(self, pulled: PulledItem) -> None:
        for request_id in pulled.unfinished():
            self._exchange.abort(request_id)

    # Claims -----------------------------------------------------------------------------------------------------

    async def _check_claims(self) -> None:
        """Renew the claims on the items that the engine works on, and end those that were taken from it."""
        renew_interval_s = self._config.claim_timeout_s / 3
        next_renewal_s = time.monotonic() + renew_interval_s
        while True:
            await asyncio.sleep(min(CHECK_INTERVAL_S, renew_interval_s))
            # The claims of a stuck engine lapse, so that another one takes its items over.
            renew = time.monotonic() >= next_renewal_s and not self._exchange.watch.is_stuck
            lost = await self._claims.lost(list(self._items), renew=renew)
            if renew:
                next_renewal_s = time.monotonic() + renew_interval_s
            await self._drop(lost, time.monotonic())

    async def _drop(self, entry_ids: list[bytes], now_s: float) -> None:
        """End the items of entries that are not the engine's own any more, without a result."""
        for entry_id in entry_ids:
            await self._exchange.turn_of_bulk()
            pulled = self._items.get(entry_id)
            if pulled is None:
                continue  # it has ended in the meantime
            lost_at_s = self._lost_at_s.setdefault(entry_id, now_s)
            if not pulled.has_begun or now_s - lost_at_s >= FINISH_S:
                self._abort(pulled)
                self._forget(pulled)


def _by_count(counts: Mapping[bytes, int], entry_ids: Iterable[bytes]) -> Iterable[tuple[int, list[bytes]]]:
    """Group entries by their counts; those that have none are left out."""
    groups: dict[int, list[bytes]] = {}
    for entry_id in entry_ids:
        if entry_id in counts:
            groups.setdefault(counts[entry_id], []).append(entry_id)
    return groups.items()


def _entries(answer: Any) -> list[tuple[bytes, Fields]]:
    """Return the entries of an XREADGROUP reply about one stream, in either of the two shapes of the protocol."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [entry for batch in answer.values() for entries in batch for entry in entries]
    return [entry for _, entries in answer for entry in entries]
