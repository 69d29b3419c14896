"""The I/O thread: an event loop that serves the socket and Redis while the main thread computes."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from engine.core.outlook import Outlook
from engine.lanes.exchange import Exchange, Mailbox
from engine.lanes.loop_watch import TICK_S, LoopWatch
from engine.lanes.socket_server import SocketServer
from engine.loop_messages import LoopEvent, Stop

if TYPE_CHECKING:
    from engine.lanes.item_puller import (
        ItemPuller,  # imports redis, which an engine without bulk can do without
    )

log = logging.getLogger("engine.io")

EXIT_STUCK = 1


class Endpoints(NamedTuple):
    """Where requests enter the engine. Without a puller it computes no items of jobs."""

    server: SocketServer
    puller: ItemPuller | None


class IoThread:
    """Runs an engine's endpoints beside the main loop, which uses `mailbox.receive`, `send` and `publish`.

    Call `start` before the loop runs and `join` after it has ended. `make_endpoints` is called on the thread's event
    loop; the server it returns then listens on `listen`.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        watch: LoopWatch,
        make_endpoints: Callable[[Exchange], Endpoints],
        listen: str,
        drain_grace_s: float,
    ) -> None:
        self._mailbox = mailbox
        self._watch = watch
        self._make_endpoints = make_endpoints
        self._listen = listen
        self._drain_grace_s = drain_grace_s
        self._exchange = Exchange(mailbox, watch)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Event | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine-io", daemon=True)

    def start(self) -> None:
        """Start the thread and return when the endpoints are open. Raises the error if they cannot be opened."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def send(self, events: Sequence[LoopEvent]) -> None:
        """Dispatch events; the `send` of the main loop."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._exchange.dispatch, events)

    def publish(self, outlook: Outlook) -> None:
        """Make a new outlook known; the `publish` of the main loop. Replacing one reference is atomic."""
        self._exchange.outlook = outlook

    def request_drain(self) -> None:
        """Begin to shut down; safe to call from a signal handler. When that is done, the main loop gets `Stop`."""
        if self._loop is not None and self._drain is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drain.set)

    def join(self) -> None:
        """Wait until the thread ends. Raises the error that ended it, if any."""
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
        server, puller = self._make_endpoints(self._exchange)
        await server.listen(self._listen)
        if puller is not None:
            puller.start()
        self._ready.set()
        watching = asyncio.create_task(self._watch_loop(), name="watch-loop")
        await self._drain.wait()
        log.info("draining: %d chat requests open", server.num_open_rt)
        if puller is not None:
            await puller.drain()
        await server.drain(self._drain_grace_s)
        watching.cancel()

    async def _watch_loop(self) -> None:
        """Look after the main loop. If it is stuck for good, end the process: no other thread can free it, and whoever
        runs the engine starts it again."""
        watch = self._watch
        was_stuck = False
        while not watch.is_hopeless:
            await asyncio.sleep(TICK_S)
            watch.tick(time.monotonic())
            if watch.is_stuck != was_stuck:
                was_stuck = watch.is_stuck
                if was_stuck:
                    log.error("the main loop is stuck: %.0f s without progress", watch.late_s)
                else:
                    log.warning("the main loop continues")
        log.critical("the main loop is stuck for good; the engine ends. Its threads were here:")
        faulthandler.dump_traceback(sys.stderr)
        os._exit(EXIT_STUCK)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The factory of uvloop, if it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
