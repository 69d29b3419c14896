"""Between the two threads: messages to the main loop, and its events back to whoever waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from engine.core.outlook import Outlook
from engine.core.request import Request
from engine.core.terms import SLO, FinishedEvent, Lane, TokenEvent
from engine.loop import Abort, Add, LoopEvent, Message, QueryStats, StatsEvent

RequestSink = Callable[[TokenEvent | FinishedEvent], None]


class Mailbox:
    """Messages to the main thread; any thread may put."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._arrived = threading.Condition()

    def put(self, message: Message) -> None:
        with self._arrived:
            self._messages.append(message)
            self._arrived.notify()

    def receive(self, timeout_s: float | None) -> list[Message]:
        """All messages so far; where there is none, sleeps until one comes, at most `timeout_s` (None: no limit)."""
        if timeout_s == 0 and not self._messages:
            return []
        with self._arrived:
            self._arrived.wait_for(lambda: self._messages, timeout_s)
            messages = list(self._messages)
            self._messages.clear()
        return messages


class Exchange:
    """The I/O thread's side: which requests are in flight, and who hears of them."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._sinks: dict[str, RequestSink] = {}
        self._stats: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._delivered: list[Callable[[], None]] = []
        self._num_sent = self._num_sent_tokens = 0  # RT
        self.outlook = Outlook()  # the main loop's latest; assigned by its thread

    def submit(self, request: Request, sink: RequestSink) -> None:
        """Hand a request to the main loop; `sink` hears its events, the last a FinishedEvent."""
        self._sinks[request.request_id] = sink
        if request.lane is Lane.RT:
            self._num_sent += 1
            self._num_sent_tokens += request.num_prompt_tokens
        self._mailbox.put(Add(request))

    def excess_s(self, prompt_tokens: int, slo: SLO, max_ttft_factor: float) -> float:
        """How long too late a new RT prompt's first token would come: `Outlook.excess_s` for what is known now."""
        return self.outlook.excess_s(
            prompt_tokens, slo, max_ttft_factor, self._num_sent, self._num_sent_tokens
        )

    def abort(self, request_id: str) -> None:
        """End a request and hear no more of it."""
        if self._sinks.pop(request_id, None) is not None:
            self._mailbox.put(Abort(request_id))

    async def stats(self, *, with_memory: bool = False) -> dict[str, Any]:
        """A fresh snapshot from the main loop."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        tag = str(id(future))
        self._stats[tag] = future
        self._mailbox.put(QueryStats(tag, with_memory))
        return await future

    def after_delivery(self, callback: Callable[[], None]) -> None:
        """Call `callback` each time a step's events have all been delivered: the moment to flush."""
        self._delivered.append(callback)

    def deliver(self, events: Sequence[LoopEvent]) -> None:
        """Called on the I/O thread with what a step produced."""
        for event in events:
            if isinstance(event, StatsEvent):
                future = self._stats.pop(event.tag)
                if not future.done():
                    future.set_result(event.values)
                continue
            sink = self._sinks.get(event.request_id)
            if sink is not None:
                if isinstance(event, FinishedEvent):
                    del self._sinks[event.request_id]
                sink(event)
        for callback in self._delivered:
            callback()
