"""One call of a webhook: a POST to an address that was checked, within bounds, that follows no redirect."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpcore
import httpx

TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 3.0  # to one of several addresses


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call: a status, or else what went wrong."""

    status: int | None
    problem: str | None = None

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants no more calls."""
        return self.status == 410


class _CheckedAddresses(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, whatever the name in the URL leads to by now."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("no address")
        for address in self._addresses:
            try:
                return await self._backend.connect_tcp(
                    address, port, CONNECT_TIMEOUT_S, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def call(url: str, headers: Sequence[tuple[str, str]], body: bytes, addresses: list[str]) -> Answer:
    """Send `body` to one of the addresses, under the name in the URL. Only the head of the answer is read."""
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpcore.AsyncConnectionPool(
                ssl_context=await asyncio.to_thread(_trusted), network_backend=_CheckedAddresses(addresses)
            ) as pool,
            pool.stream("POST", url, headers=headers, content=body) as response,
        ):
            return Answer(response.status)
    except TimeoutError:
        return Answer(None, f"no answer within {TIMEOUT_S:g} s")
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.TimeoutException,
        httpcore.UnsupportedProtocol,
    ) as error:
        return Answer(None, _sentence(error))
    except (OSError, ValueError) as error:
        return Answer(None, _sentence(error))


@cache
def _trusted() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _sentence(error: Exception) -> str:
    text = str(error)
    if isinstance(error, httpcore.ConnectTimeout):
        return f"no connection within {CONNECT_TIMEOUT_S:g} s"
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
