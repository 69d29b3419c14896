"""Room for a new connection: when there are too many, one without a request is closed, or the new one is rejected."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Protocol

from bros_batch.addresses import is_loopback
from bros_batch.web.errors import ApiError

TOO_MANY_CONNECTIONS = ApiError(
    503, "The server has too many connections. Try again in a moment.", code="overloaded", retry_after_s=1.0
)
TOO_MANY_OF_ONE_CLIENT = ApiError(
    429, "Your address has too many connections.", code="too_many_connections", retry_after_s=1.0
)


class Connection(Protocol):
    """A connection that is open already."""

    transport: asyncio.Transport
    without_request_since_s: float

    @property
    def has_request(self) -> bool: ...


def make_room(
    connections: Collection[Connection], address: str, max_connections: int, trusted: str | Sequence[str]
) -> ApiError | None:
    """Make room for one more connection, from `address`. Returns why it is rejected if there is none.

    A client may have half of all connections, unless its address is `trusted` or that of this machine.
    """
    if len(connections) >= max_connections:
        return None if _close_idle(connections) else TOO_MANY_CONNECTIONS
    if _is_proxy(address, trusted):
        return None
    of_client = [each for each in connections if address_of(each.transport) == address]
    if len(of_client) >= max_connections // 2:
        return None if _close_idle(of_client) else TOO_MANY_OF_ONE_CLIENT
    return None


def address_of(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


def _is_proxy(address: str, trusted: str | Sequence[str]) -> bool:
    """Return whether connections from `address` may come from many clients: it is this machine, or trusted."""
    names = trusted.split(",") if isinstance(trusted, str) else trusted
    return is_loopback(address) or "*" in names or address in [name.strip() for name in names]


def _close_idle(connections: Collection[Connection]) -> bool:
    """Close the connection that has been without a request for longest. Returns whether there was one."""
    idle = [each for each in connections if not each.has_request]
    if not idle:
        return False
    min(idle, key=lambda each: each.without_request_since_s).transport.abort()
    return True
