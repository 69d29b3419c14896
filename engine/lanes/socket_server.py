"""The engine's socket: accepts requests on a Unix or TCP socket and sends back their tokens as they are sampled."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

from engine.lanes.socket_connection import Connection, ServerContext
from engine.wire.framing import Address


class SocketServer:
    """Listens for clients and keeps their connections."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        context.requests.exchange.after_step(self._flush)

    @property
    def num_open_rt(self) -> int:
        """Number of RT requests that have been admitted and have not ended."""
        return self._context.requests.admission.num_open_rt

    async def listen(self, url: str) -> None:
        """Start to listen on `url`. Raises OSError, which says what to do, if that is not possible."""
        address = Address.parse(url)
        loop = asyncio.get_running_loop()
        if address.path is None:
            if not self._context.token:
                raise OSError(
                    "an engine that listens on TCP needs a token; set BROS_ENGINE_TOKEN or use a Unix socket"
                )
            assert address.host is not None and address.port is not None
            self._server = await loop.create_server(self._connection, address.host, address.port)
            return
        self._path = Path(address.path)
        await _remove_stale_socket(self._path)
        old_mask = os.umask(0o177)  # so that the socket has mode 0600 as soon as it exists
        try:
            self._server = await loop.create_unix_server(self._connection, address.path)
        finally:
            os.umask(old_mask)

    async def drain(self, grace_s: float) -> None:
        """Reject new requests, let open RT requests finish for up to `grace_s`, then close every connection."""
        if self._server is not None:
            self._server.close()
        try:
            async with asyncio.timeout(grace_s):
                await self._context.requests.admission.drain()
        except TimeoutError:
            pass
        for connection in list(self._context.connections):
            connection.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _connection(self) -> Connection:
        return Connection(self._context)

    def _flush(self) -> None:
        unflushed = self._context.unflushed
        for outbox in tuple(unflushed):
            outbox.flush()
            if not outbox.holds_tokens:
                unflushed.discard(outbox)


async def _remove_stale_socket(path: Path) -> None:
    """Remove the socket file of an engine that died. Raises OSError if an engine answers there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(
                f"{path} is in the way: it is not a socket; move it or choose another --listen address"
            )
    except FileNotFoundError:
        return
    try:
        _, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        path.unlink(missing_ok=True)
        return
    writer.close()
    raise OSError(f"another engine listens on {path}; stop it or choose another --listen address")
