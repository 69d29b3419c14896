"""Item puller: pulls items of jobs from a Redis stream while the engine has room, and pushes their results to another.

An entry stays in the stream until its result is recorded in the database. An engine renews its claim on an entry while
it works on the item. If the engine dies, it stops renewing, and another engine, or the same one after a restart, takes
the entry over.

The job system takes an item back (its job was paused or cancelled, or has expired) by removing its entry. The engine
looks several times per second which entries are still its own, so no message to it can be lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.lanes.exchange import Exchange
from engine.lanes.followed_items import FollowedItems
from engine.lanes.grammar_gate import GrammarGate
from engine.lanes.heartbeat import Heartbeat
from engine.lanes.held_items import HeldItems
from engine.lanes.item_puller_config import ItemPullerConfig
from engine.lanes.item_rate import ItemRate
from engine.lanes.loop_watch import TICK_S
from engine.lanes.persistent_task import keep_running
from engine.lanes.pulled_item import PulledItem
from engine.lanes.result_queue import ResultQueue
from engine.lanes.stream_claims import Entry, StreamClaims
from engine.lanes.suspects import Suspects
from engine.wire import redis_keys
from engine.wire.stream_entries import identity

log = logging.getLogger("engine.pull")

READ_BLOCK_MS = 1000
READ_BLOCK_WITH_SUSPECTS_MS = 50  # the next one starts soon after another has ended
# A full engine looks this often whether items wait that are more urgent than those it holds, and for so many.
URGENT_INTERVAL_S = 0.25
URGENT_READ = 32
CHECK_INTERVAL_S = 0.25  # an engine looks this often which entries are still its own
RELEASE_TIMEOUT_S = 5.0


class ItemPuller:
    """Pulls items and pushes results, as tasks of the I/O thread. Survives a Redis that restarts, even empty."""

    def __init__(self, config: ItemPullerConfig, exchange: Exchange, redis: Redis, gate: GrammarGate) -> None:
        self._config = config
        self._exchange = exchange
        self._redis = redis
        key = redis_keys.items_key(config.model)
        self._claims = StreamClaims(redis, key, config.engine_id)
        self._suspects = Suspects(redis, config.model, config.last_step)
        self._results = ResultQueue(redis, key)
        rate = ItemRate(time.monotonic())
        self._held = HeldItems(config, exchange, gate, self._results, rate)
        about = {**config.about, "weights": config.weights, "max_in_flight": config.max_in_flight}
        self._heartbeat = Heartbeat(
            config.engine_id, about, exchange, redis, rate, self._held.by_entry.values
        )
        self._ready: deque[PulledItem] = deque()  # to be submitted, unless they have been taken back
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
            FollowedItems(self._redis, self._held.by_entry.values).show_outputs,
        ]
        self._tasks = [asyncio.create_task(keep_running(worker), name=worker.__name__) for worker in workers]

    async def drain(self) -> None:
        """Stop pulling, push the remaining results, and release unfinished entries to other engines."""
        running = {*self._tasks, *self._held.compiling}
        while running:  # a client library may swallow a cancellation, so repeat it until the task ends
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=0.5)
        unfinished = self._held.drop_all()
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._results.flush()
                if unfinished:
                    await self._claims.release(unfinished)
                await self._heartbeat.end()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("could not release %d items (%s); they are taken over later", len(unfinished), error)
        await self._redis.aclose()

    async def _pull(self) -> None:
        held = self._held.by_entry
        await self._claims.make_group()
        await self._suspects.count_deaths()
        await self._take_over_own()
        next_takeover_s = 0.0
        while True:
            if self._exchange.watch.is_stuck:  # what it took would wait here; another engine can compute it
                await asyncio.sleep(TICK_S)
                continue
            if time.monotonic() >= next_takeover_s:
                await self._take_over_from_others()
                next_takeover_s = time.monotonic() + self._config.claim_timeout_s / 2
            await self._submit_ready()
            await self._start_suspects()
            room = self._config.max_in_flight - len(held)
            if room <= 0 and not (room := await self._room_for_urgent()):
                await self._held.wait_for_end(URGENT_INTERVAL_S)
                continue
            has_suspects = self._suspects.has_waiting(held)
            block_ms = READ_BLOCK_WITH_SUSPECTS_MS if has_suspects else READ_BLOCK_MS
            await self._take_in(await self._claims.read(room, block_ms), {})

    async def _room_for_urgent(self) -> int:
        """How many of the next entries a full engine may read, because they are more urgent than items it holds."""
        now_s = time.monotonic()
        if now_s < self._next_urgent_s:
            return 0
        self._next_urgent_s = now_s + URGENT_INTERVAL_S
        priorities = [pulled.item.priority for pulled in self._held.by_entry.values()]
        least = min(priorities)
        num_urgent = len(priorities) - priorities.count(least)
        room = min(self._config.max_in_flight - num_urgent, URGENT_READ)
        waiting = await self._claims.more_urgent(least, room) if room > 0 else 0
        if waiting:
            self._next_urgent_s = now_s  # there may be more
        return waiting

    async def _take_over_own(self) -> None:
        """Claim the entries that this engine had before it was restarted."""
        own = await self._claims.own()
        if self._suspects.knows_last_step:  # only runs count whose deaths, if they died, are not known
            own = {entry_id: starts - 1 for entry_id, starts in own.items()}
        await self._take_over(own, 0, "its last run")

    async def _take_over_from_others(self) -> None:
        """Claim entries whose engine is gone."""
        min_idle_ms = int(self._config.claim_timeout_s * 1000)
        left = await self._claims.left_by_others(self._config.max_in_flight, min_idle_ms)
        await self._take_over(left, min_idle_ms, "another engine")

    async def _take_over(self, found: Mapping[bytes, int], min_idle_ms: int, whose: str) -> None:
        """Claim entries that were started so many times, unless the engine has them already."""
        ended, held = self._results.waiting(), self._held.by_entry
        starts = {
            entry_id: count
            for entry_id, count in found.items()
            if entry_id not in held and entry_id not in ended
        }
        if not starts:
            return
        claimed = await self._claims.claim(
            {entry_id: count + 1 for entry_id, count in starts.items()}, min_idle_ms
        )
        log.info("took over %d items of %s", len(claimed), whose)
        await self._take_in(claimed, starts)

    async def _take_in(self, entries: Sequence[Entry], starts: Mapping[bytes, int]) -> None:
        """Take in entries that the engine has claimed. `starts`: how often each was started before, if it was. Suspects
        are submitted when it is their turn, all others next."""
        ids = [identity(fields) for _, fields in entries]
        records = await self._suspects.records(
            [found and found[0] for found in ids], [starts.get(entry_id, 0) for entry_id, _ in entries]
        )
        suspects: list[bytes] = []
        for (entry_id, fields), record in zip(entries, records, strict=True):
            if failure := record.failure(self._config.max_attempts):
                self._held.fail_unread(entry_id, fields, "engine_lost", failure)
            elif (pulled := self._held.take_in(entry_id, fields)) is None:
                continue
            elif record.is_suspect:
                self._suspects.add(entry_id, record)
                suspects.append(entry_id)
            else:
                pulled.was_started = entry_id in starts
                self._ready.append(pulled)
        # They have not been started after all.
        await self._claims.set_starts(
            {entry_id: starts[entry_id] for entry_id in suspects if entry_id in starts}
        )

    async def _submit_ready(self) -> None:
        """Submit items as fast as the main loop takes them in."""
        held = self._held
        while self._ready:
            await self._exchange.turn_of_bulk()
            pulled = self._ready.popleft()
            if held.by_entry.get(pulled.entry_id) is pulled:  # it was not taken back in the meantime
                held.submit(pulled)

    async def _start_suspects(self) -> None:
        """Submit the suspects whose turn it is."""
        held = self._held.by_entry
        while (chosen := self._suspects.next_to_start(held)) is not None:
            entry_id, record = chosen
            await self._claims.set_starts({entry_id: record.starts + 1})
            if entry_id in held:
                self._suspects.has_started(entry_id)
                self._held.submit(held[entry_id], is_suspect=True)

    async def _check_claims(self) -> None:
        """Renew the claims on the items that the engine works on, and end those that were taken from it."""
        renew_interval_s = self._config.claim_timeout_s / 3
        next_renewal_s = time.monotonic() + renew_interval_s
        while True:
            await asyncio.sleep(min(CHECK_INTERVAL_S, renew_interval_s))
            # The claims of a stuck engine lapse, so that another one takes its items over.
            renew = time.monotonic() >= next_renewal_s and not self._exchange.watch.is_stuck
            lost = await self._claims.lost(list(self._held.by_entry), renew=renew)
            if renew:
                next_renewal_s = time.monotonic() + renew_interval_s
            await self._held.drop_lost(lost, time.monotonic())
