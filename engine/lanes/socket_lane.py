"""The RT lane: requests over a Unix or TCP socket, tokens back as they are drawn."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from engine.core.terms import SLO
from engine.lanes.admission import Admission
from engine.lanes.exchange import Exchange
from engine.lanes.socket_connection import Connection
from engine.wire.framing import Address
from engine.wire.protocol import Welcome


@dataclass(frozen=True, slots=True)
class SocketLaneConfig:
    """`max_waiting_rt` open real-time requests are the most; more are told to come back, and so are those whose first
    token would take more than `max_ttft_factor` times as long as promised."""

    welcome: Welcome
    token: str | None
    default_slo: SLO
    max_waiting_rt: int
    admission: Admission
    max_ttft_factor: float = 4.0


class SocketLane:
    """Listens, and keeps the connections."""

    def __init__(self, config: SocketLaneConfig, exchange: Exchange) -> None:
        self.config = config
        self.exchange = exchange
        self.request_numbers = itertools.count()
        self.connections: set[Connection] = set()
        self.unflushed: set[Connection] = set()
        self.num_open_rt = 0
        self.num_refused = dict.fromkeys(("overloaded", "draining"), 0)
        self.draining = False
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        exchange.after_delivery(self._flush)

    async def listen(self, url: str) -> None:
        """Raises OSError with what to do if the address can't be had."""
        address = Address.parse(url)
        loop = asyncio.get_running_loop()
        if address.path is None:
            if not self.config.token:
                raise OSError(
                    "an engine that listens on TCP needs a token; set BROS_ENGINE_TOKEN or use a Unix socket"
                )
            assert address.host is not None and address.port is not None
            self._server = await loop.create_server(lambda: Connection(self), address.host, address.port)
            return
        self._path = Path(address.path)
        await _remove_stale_socket(self._path)
        old_mask = os.umask(0o177)  # the socket is 0600 from its first moment
        try:
            self._server = await loop.create_unix_server(lambda: Connection(self), address.path)
        finally:
            os.umask(old_mask)

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, let open ones finish for `grace_s`, then close every connection."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        for connection in list(self.connections):
            connection.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def count_rt(self, change: int) -> None:
        """Keep track of open RT requests, for admission and for draining."""
        self.num_open_rt += change
        if self.num_open_rt:
            self._idle.clear()
        else:
            self._idle.set()

    def count_refused(self, code: str) -> None:
        """A request was refused because of what the engine was doing, or for what it asked."""
        self.num_refused[code] = self.num_refused.get(code, 0) + 1

    def _flush(self) -> None:
        for connection in self.unflushed:
            connection.flush()
        self.unflushed = {connection for connection in self.unflushed if connection.holds_tokens}


async def _remove_stale_socket(path: Path) -> None:
    """Take away the socket file of an engine that died; refuse if one answers there."""
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
