"""Exchange between the I/O thread and the main thread: messages to the loop, and its events back to their sinks."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.outlook import Outlook
from engine.core.request import Request
from engine.core.terms import SLO, Lane
from engine.loop import Abort, Add, LoopEvent, Message, QueryStats, StatsEvent

RequestSink = Callable[[TokenEvent | FinishedEvent], None]


class Mailbox:
    """A queue of messages to the main thread. Any thread may put messages into it."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._arrived = threading.Condition()

    def put(self, message: Message) -> None:
        with self._arrived:
            self._messages.append(message)
            self._arrived.notify()

    def receive(self, timeout_s: float | None) -> list[Message]:
        """Return all messages so far. If there are none, wait for one for up to `timeout_s` (None: without a limit)."""
        if timeout_s == 0 and not self._messages:
            return []
        with self._arrived:
            self._arrived.wait_for(lambda: self._messages, timeout_s)
            messages = list(self._messages)
            self._messages.clear()
        return messages


class Exchange:
    """The I/O thread's end: knows which requests are in flight, and which sink gets the events of each."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._sinks: dict[str, RequestSink] = {}
        self._stats: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._after_step: list[Callable[[], None]] = []
        self._num_sent = self._num_sent_tokens = 0  # RT
        self.outlook = Outlook()  # the latest of the main loop, assigned by its thread

    def submit(self, request: Request, sink: RequestSink) -> None:
        """Pass a request to the main loop. `sink` is called with each of its events, the last a FinishedEvent."""
        self._sinks[request.request_id] = sink
        if request.lane is Lane.RT:
            self._num_sent += 1
            self._num_sent_tokens += request.num_prompt_tokens
        self._mailbox.put(Add(request))

    def excess_s(self, prompt_tokens: int, slo: SLO, max_ttft_factor: float) -> float:
        """How far a new RT request would exceed its TTFT limit, given what is known now; see `Outlook.excess_s`."""
        return self.outlook.excess_s(
            prompt_tokens, slo, max_ttft_factor, self._num_sent, self._num_sent_tokens
        )

    def abort(self, request_id: str) -> None:
        """End a request. Its sink is not called again."""
        if self._sinks.pop(request_id, None) is not None:
            self._mailbox.put(Abort(request_id))

    async def stats(self, *, with_memory: bool = False) -> dict[str, Any]:
        """Request a new snapshot from the main loop and return it."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        tag = str(id(future))
        self._stats[tag] = future
        self._mailbox.put(QueryStats(tag, with_memory))
        return await future

    def after_step(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the sinks have received all events of a step, which is the time to flush."""
        self._after_step.append(callback)

    def dispatch(self, events: Sequence[LoopEvent]) -> None:
        """Pass the events of a step to their sinks. Runs on the I/O thread."""
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
        for callback in self._after_step:
            callback()
