"""The I/O thread: one event loop that owns the socket, Redis and nothing of the model."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from engine.core.outlook import Outlook
from engine.lanes.exchange import Exchange, Mailbox
from engine.lanes.socket_lane import SocketLane
from engine.loop import LoopEvent, Stop

if TYPE_CHECKING:
    from engine.lanes.pull_lane import (
        PullLane,  # imports redis, which an engine without a BE lane needs not have
    )

log = logging.getLogger("engine.io")

Lanes = tuple[SocketLane, "PullLane | None"]


class IoThread:
    """Start it, run the main loop with `mailbox.receive`, `send` and `publish`, and `join` it when the loop has ended.

    `open_lanes` runs on the thread's event loop and gives the lanes, the socket one listening on `listen`.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        open_lanes: Callable[[Exchange], Lanes],
        listen: str,
        drain_grace_s: float,
    ) -> None:
        self._mailbox = mailbox
        self._open_lanes = open_lanes
        self._listen = listen
        self._drain_grace_s = drain_grace_s
        self._exchange = Exchange(mailbox)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Event | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine-io", daemon=True)

    def start(self) -> None:
        """Returns once the lanes are open. Raises what kept them from opening."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def send(self, events: Sequence[LoopEvent]) -> None:
        """The main loop's `send`."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._exchange.deliver, events)

    def publish(self, outlook: Outlook) -> None:
        """The main loop's `publish`: one reference takes another's place, so no thread sees half of it."""
        self._exchange.outlook = outlook

    def request_drain(self) -> None:
        """Begin to shut down; safe to call from a signal handler. The main loop gets `Stop` when it is done."""
        if self._loop is not None and self._drain is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drain.set)

    def join(self) -> None:
        """Wait for the thread; raises what it died of, if it did."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()
            self._mailbox.put(Stop())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._drain = asyncio.Event()
        socket_lane, pull_lane = self._open_lanes(self._exchange)
        await socket_lane.listen(self._listen)
        if pull_lane is not None:
            pull_lane.start()
        self._ready.set()
        await self._drain.wait()
        log.info("draining: %d real-time requests open", socket_lane.num_open_rt)
        if pull_lane is not None:
            await pull_lane.drain()
        await socket_lane.drain(self._drain_grace_s)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
