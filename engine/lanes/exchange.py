"""Exchange between the I/O thread and the main thread: messages to the loop, and its events back to their sinks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from engine.core.events import FinishedEvent, TokenEvent
from engine.core.outlook import Outlook
from engine.core.request import Request
from engine.core.terms import SLO, FinishReason, Lane
from engine.lanes.loop_watch import LoopWatch
from engine.lanes.snapshots import Snapshots
from engine.loop_messages import Abort, Add, LoopEvent, Message, QueryStats, StatsEvent

log = logging.getLogger("engine.io")

# What the main loop takes in before one step. The rest waits for the next step, so that thousands of messages do not
# delay the tokens of the requests that run.
MESSAGES_PER_STEP = 256
# Above this number, connections are not read until the main loop has caught up.
MANY_MESSAGES = 2 * MESSAGES_PER_STEP
# From this number on, bulk waits: an item may have a hundred outputs, and chats are not to wait behind those of many.
SOME_MESSAGES = MESSAGES_PER_STEP // 2
CATCH_UP_S = 0.01  # this often it is looked at whether the main loop has caught up

RequestSink = Callable[[TokenEvent | FinishedEvent], None]


class Mailbox:
    """A queue of messages to the main thread. Any thread may put messages into it."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._arrived = threading.Condition()

    def put(self, message: Message) -> None:
        self.put_all((message,))

    def put_all(self, messages: Iterable[Message]) -> None:
        with self._arrived:
            self._messages.extend(messages)
            self._arrived.notify()

    @property
    def has_messages(self) -> bool:
        return bool(self._messages)

    def receive(self, timeout_s: float | None) -> list[Message]:
        """Return the oldest messages, as many as one step takes in. If there are none, wait for one for up to
        `timeout_s` (None: without a limit)."""
        if timeout_s == 0 and not self._messages:
            return []
        with self._arrived:
            self._arrived.wait_for(lambda: self._messages, timeout_s)
            number = min(len(self._messages), MESSAGES_PER_STEP)
            return [self._messages.popleft() for _ in range(number)]

    def __len__(self) -> int:
        return len(self._messages)


class Exchange:
    """The I/O thread's end: knows which requests are in flight, and which sink gets the events of each."""

    def __init__(self, mailbox: Mailbox, watch: LoopWatch) -> None:
        self._mailbox = mailbox
        self.watch = watch
        self._sinks: dict[str, RequestSink] = {}
        self._snapshots = Snapshots(self._request_snapshot)
        self._after_step: list[Callable[[], None]] = []
        self._num_sent = self._num_sent_tokens = 0  # RT
        self.outlook = Outlook()  # the latest of the main loop, assigned by its thread

    def submit(self, request: Request, sink: RequestSink) -> None:
        """Pass a request to the main loop. `sink` is called with each of its events, the last a FinishedEvent."""
        self.submit_all([(request, sink)])

    def submit_all(self, requests: Sequence[tuple[Request, RequestSink]]) -> None:
        """Pass several requests to the main loop together."""
        for request, sink in requests:
            self._sinks[request.request_id] = sink
            if request.lane is Lane.RT:
                self._num_sent += 1
                self._num_sent_tokens += request.num_prompt_tokens
        self._mailbox.put_all([Add(request) for request, _ in requests])

    def excess_s(self, prompt_tokens: int, slo: SLO, max_ttft_factor: float) -> float:
        """How far a new RT request would exceed its TTFT limit, given what is known now; see `Outlook.excess_s`."""
        return self.outlook.excess_s(
            prompt_tokens, slo, max_ttft_factor, self._num_sent, self._num_sent_tokens
        )

    def wait_s(self) -> float:
        """How long a new RT request waits for those ahead of it, given what is known now."""
        sent = self._num_sent - self.outlook.num_received
        return self.outlook.wait_s(sent, self._num_sent_tokens - self.outlook.num_received_tokens)

    def abort(self, request_id: str) -> None:
        """End a request. Its sink is not called again."""
        if self._sinks.pop(request_id, None) is not None:
            self._mailbox.put(Abort(request_id))

    async def stats(self, *, with_memory: bool = False) -> dict[str, Any]:
        """Return a snapshot that the main loop makes from now on; it may serve others as well."""
        return await self._snapshots.get(with_memory=with_memory)

    def _request_snapshot(self, with_memory: bool) -> None:
        self._mailbox.put(QueryStats("snapshot", with_memory))

    @property
    def is_congested(self) -> bool:
        """Whether the main loop has more messages to take in than the next steps will."""
        return len(self._mailbox) > MANY_MESSAGES

    async def turn_of_bulk(self) -> None:
        """Wait until the messages of a chat would not be delayed by a few more of bulk."""
        while len(self._mailbox) >= SOME_MESSAGES:  # noqa: ASYNC110 - the main loop knows no events of this thread
            await asyncio.sleep(CATCH_UP_S)

    def after_step(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the sinks have received all events of a step, which is the time to flush."""
        self._after_step.append(callback)

    def dispatch(self, events: Sequence[LoopEvent]) -> None:
        """Pass the events of a step to their sinks. Runs on the I/O thread.

        An error in a sink ends its request; all other sinks get their events.
        """
        for event in events:
            if isinstance(event, StatsEvent):
                self._snapshots.arrive(event.values)
                continue
            sink = self._sinks.get(event.request_id)
            if sink is not None:
                if isinstance(event, FinishedEvent):
                    del self._sinks[event.request_id]
                try:
                    sink(event)
                except Exception as error:
                    self._give_up(event.request_id, sink, error)
        for callback in self._after_step:
            try:
                callback()
            except Exception:
                log.exception("an endpoint could not act on the events of a step; the others go on")

    def _give_up(self, request_id: str, sink: RequestSink, error: Exception) -> None:
        """End a request whose sink has raised an error: it lacks an event, and would be wrong without it."""
        log.error("request %s ends because its output cannot be passed on", request_id, exc_info=error)
        self.abort(request_id)
        message = f"the engine could not pass on the output ({type(error).__name__})"
        # Sinks know the lane of their request, which is not known here.
        ended = FinishedEvent(request_id, Lane.BE, FinishReason.ERROR, 0, 0, 0, 0.0, message=message)
        try:
            sink(ended)
        except Exception:
            log.exception("the owner of request %s cannot be told that it ended", request_id)
