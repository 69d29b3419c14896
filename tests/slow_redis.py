"""A proxy before a Redis that makes it slow: every reply is late, and sometimes nothing passes for a while."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

PIECE_BYTES = 64 * 1024


class SlowRedis:
    """The proxy of `redis_socket`, which listens on the Unix socket `socket`.

    Each piece of a reply is passed on `delay_s` after it came. While the proxy is stalled, neither requests nor replies
    pass; it keeps them.
    """

    def __init__(self, redis_socket: Path, socket: Path, delay_s: float) -> None:
        self.socket = socket
        self._redis_socket = redis_socket
        self._delay_s = delay_s
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self.ready = threading.Event()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def stall(self) -> None:
        self._loop.call_soon_threadsafe(self._flows.clear)

    def flow(self) -> None:
        self._loop.call_soon_threadsafe(self._flows.set)

    def run(self) -> None:
        """Serve until `stop` is called."""
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_unix_server(self._serve, self.socket))
        self._loop.call_soon(self.ready.set)
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_unix_connection(self._redis_socket)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(client_reader, writer, 0.0))
                group.create_task(self._pass_on(reader, client_writer, self._delay_s))
        finally:
            for end in (writer, client_writer):
                end.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
    ) -> None:
        """Copy in order, each piece as late as it should be: a pipeline of pieces is delayed only once."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def write() -> None:
            while True:
                due_s, piece = await pieces.get()
                await asyncio.sleep(due_s - loop.time())
                await self._flows.wait()
                if not piece:
                    writer.close()
                    return
                writer.write(piece)
                await writer.drain()

        writing = asyncio.create_task(write())
        try:
            piece = b"not yet read"
            while piece:
                try:
                    piece = await reader.read(PIECE_BYTES)
                except ConnectionError:
                    piece = b""
                pieces.put_nowait((loop.time() + delay_s, piece))
            with contextlib.suppress(ConnectionError):
                await writing
        finally:
            writing.cancel()


@contextlib.contextmanager
def slow_redis(redis_socket: Path, socket: Path, delay_s: float) -> Iterator[SlowRedis]:
    """Run the proxy in a thread of its own."""
    proxy = SlowRedis(redis_socket, socket, delay_s)
    thread = threading.Thread(target=proxy.run, daemon=True)
    thread.start()
    try:
        assert proxy.ready.wait(30)
        yield proxy
    finally:
        proxy.flow()
        proxy.stop()
        thread.join(30)
        assert not thread.is_alive()
