"""The items that an engine holds: entries of the stream become requests to the core, and their events a result."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from engine.core import terms
from engine.core.events import FinishedEvent, TokenEvent
from engine.lanes.exchange import Exchange
from engine.lanes.grammar_gate import GrammarGate, UnusableGrammar
from engine.lanes.item_puller_config import ItemPullerConfig
from engine.lanes.item_rate import ItemRate
from engine.lanes.pulled_item import PulledItem, failed_item
from engine.lanes.result_queue import ResultQueue
from engine.lanes.stream_claims import Fields
from engine.wire import item_messages
from engine.wire.item_messages import ItemResult
from engine.wire.request_problems import problem_with_item
from engine.wire.request_terms import Grammar
from engine.wire.stream_entries import describe, identity

log = logging.getLogger("engine.pull")

# Items that the engine has lost, and of which nothing has been computed, end at once. The others have this long to
# finish, because most of their work is done.
FINISH_S = 0.75


class HeldItems:
    """The items that an engine has taken in and not ended, by their stream entries. Belongs to the I/O thread.

    Whatever an entry holds, nothing but its own item can fail. `rate` counts what ends.
    """

    def __init__(
        self,
        config: ItemPullerConfig,
        exchange: Exchange,
        gate: GrammarGate,
        results: ResultQueue,
        rate: ItemRate,
    ) -> None:
        self._config = config
        self._exchange = exchange
        self._gate = gate
        self._results = results
        self._rate = rate
        self.by_entry: dict[bytes, PulledItem] = {}
        self.compiling: set[asyncio.Task[None]] = set()  # wait for the grammars of items
        self._lost_at_s: dict[bytes, float] = {}  # since when an entry is not the engine's own any more
        self._has_ended = asyncio.Event()

    def take_in(self, entry_id: bytes, fields: Fields) -> PulledItem | None:
        """The item of an entry, or None for an entry that holds no item which can be computed."""
        try:
            item = item_messages.decode_item_request(fields[b"p"])
        except msgspec.ValidationError as error:
            self.fail_unread(entry_id, fields, "invalid_request", f"the item cannot be read: {error}")
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
        pulled = self.by_entry[entry_id] = PulledItem(entry_id, item)
        return pulled

    def submit(self, pulled: PulledItem, *, is_suspect: bool = False) -> None:
        """Submit an item, or, if a grammar of it is not compiled yet, do so later."""
        grammars: dict[Grammar, terms.Grammar] = {}
        try:
            for grammar in pulled.grammars():
                ready = self._gate.ready(grammar, pulled.asker)
                if ready is None:
                    task = asyncio.create_task(self._submit_when_compiled(pulled, is_suspect))
                    self.compiling.add(task)
                    task.add_done_callback(self.compiling.discard)
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
        if self.by_entry.get(pulled.entry_id) is not pulled:
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
            if isinstance(event, FinishedEvent) and pulled.is_finished and pulled.entry_id in self.by_entry:
                result = pulled.result(self._config.engine_id, self._config.weights)
                self._rate.count(pulled.num_tokens)
                self._end(pulled, result)
        except Exception as error:
            log.exception("the output of stream entry %s cannot be taken in", pulled.entry_id.decode())
            self._abort(pulled)
            message = f"the engine could not report its output: {type(error).__name__}"
            self._end(pulled, pulled.failure(self._config.engine_id, "engine_error", message))

    def fail_unread(self, entry_id: bytes, fields: Fields, code: str, message: str) -> None:
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
        del self.by_entry[pulled.entry_id]
        self._lost_at_s.pop(pulled.entry_id, None)
        self._has_ended.set()

    def _abort(self, pulled: PulledItem) -> None:
        for request_id in pulled.unfinished():
            self._exchange.abort(request_id)

    # Without a result -------------------------------------------------------------------------------------------

    async def drop_lost(self, entry_ids: Sequence[bytes], now_s: float) -> None:
        """End the items of entries that are not the engine's own any more, without a result."""
        for entry_id in entry_ids:
            await self._exchange.turn_of_bulk()
            pulled = self.by_entry.get(entry_id)
            if pulled is None:
                continue  # it has ended in the meantime
            lost_at_s = self._lost_at_s.setdefault(entry_id, now_s)
            if not pulled.has_begun or now_s - lost_at_s >= FINISH_S:
                self._abort(pulled)
                self._forget(pulled)

    def drop_all(self) -> list[bytes]:
        """End all items without a result. Returns their entries."""
        dropped = list(self.by_entry)
        for entry_id in dropped:
            self._abort(self.by_entry.pop(entry_id))
        return dropped

    async def wait_for_end(self, timeout_s: float) -> None:
        """Wait until an item ends, for at most so long."""
        self._has_ended.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._has_ended.wait()
