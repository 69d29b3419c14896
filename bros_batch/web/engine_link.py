"""The web process's connection to the engine, which is restored whenever the engine comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from engine.wire.client import EngineClient, EngineGone

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.05
MAX_DELAY_S = 2.0
CONNECT_TIMEOUT_S = 2.0


class EngineLink:
    """Keeps a connection open: `async with EngineLink(url, token) as link`, and `await link.client()` per request."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._token = token
        self._client: EngineClient | None = None
        self._failure = EngineGone("no connection has been attempted yet")
        self._tried = asyncio.Event()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EngineLink:
        self._task = asyncio.create_task(self._keep_connected(), name="engine-link")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._client is not None:
            await self._client.close()

    @property
    def connected(self) -> EngineClient | None:
        """The open connection, or None."""
        client = self._client
        return client if client is not None and not client.closed.is_set() else None

    async def client(self) -> EngineClient:
        """Return the open connection; if there is none, try to connect now. Raises EngineGone."""
        if (client := self.connected) is not None:
            return client
        self._tried.clear()
        self._wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._tried.wait()
        if (client := self.connected) is not None:
            return client
        raise EngineGone(str(self._failure)) from self._failure

    async def _keep_connected(self) -> None:
        delay_s = FIRST_DELAY_S
        while True:
            self._wanted.clear()
            try:
                client = await EngineClient.connect(self._url, self._token, CONNECT_TIMEOUT_S)
            except EngineGone as error:
                if str(error) != str(self._failure):
                    logger.warning("%s", error)
                self._failure = error
                self._tried.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._wanted.wait()
                delay_s = min(delay_s * 2, MAX_DELAY_S)
                continue
            logger.info(
                "connected to engine %s, which serves %s", client.welcome.engine_id, client.welcome.model
            )
            self._client, delay_s = client, FIRST_DELAY_S
            self._tried.set()
            await client.closed.wait()
            self._failure = EngineGone("the connection to the engine was lost")
            logger.warning("%s", self._failure)
