"""The web process's connection to the engine: restored whenever the engine comes back, and watched while it is open."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone, EngineSilent
from engine.wire.protocol import Pulse

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.05
MAX_DELAY_S = 2.0
CONNECT_TIMEOUT_S = 2.0
# How often the engine is asked for a sign of life, after how many intervals without one it gets no new requests, and
# after how many more the requests that it has end with an error. Counting intervals instead of reading a clock, a web
# process that was itself held up does not blame the engine for it.
PROBE_INTERVAL_S = 1.0
SILENT_PROBES = 3
LOST_PROBES = 10


class EngineLink:
    """Keeps a connection open: `async with EngineLink(url, token) as link`, and `await link.client()` per request."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._token = token
        self._client: EngineClient | None = None
        self._silence: EngineSilent | None = None  # why the open connection is not used at the moment
        self._is_late = False
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
        """The open connection to an engine that answers and makes progress, or None."""
        client = self._client
        is_usable = client is not None and not client.closed.is_set() and self._silence is None
        return client if is_usable else None

    @property
    def is_late(self) -> bool:
        """Whether the engine has said nothing since the latest probe, which is a second ago or more."""
        return self._is_late

    async def client(self) -> EngineClient:
        """Return the open connection; if there is none, try to connect now. Raises EngineGone, at once for an engine
        that is known to be silent."""
        if (client := self.connected) is not None:
            return client
        if self._silence is not None:
            raise EngineSilent(str(self._silence))
        self._tried.clear()
        self._wanted.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._tried.wait()
        if (client := self.connected) is not None:
            return client
        raise type(self._failure)(str(self._failure)) from self._failure

    async def _keep_connected(self) -> None:
        delay_s = FIRST_DELAY_S
        while True:
            self._wanted.clear()
            try:
                client = await self._connect()
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
            try:
                self._failure = await self._watch(client)
            finally:
                self._silence, self._is_late = None, False
            logger.warning("%s", self._failure)

    async def _connect(self) -> EngineClient:
        """Open a connection to an engine that makes progress. Raises EngineGone."""
        client = await EngineClient.connect(self._url, self._token, CONNECT_TIMEOUT_S)
        try:
            if (problem := _problem(await client.pulse(CONNECT_TIMEOUT_S))) is not None:
                raise problem
        except BaseException:
            await client.close()
            raise
        return client

    async def _watch(self, client: EngineClient) -> EngineGone:
        """Probe an open connection until it is lost, or until the engine has been silent or stuck for too long.

        Returns the reason, with which the requests of the connection end.
        """
        num_silent = 0
        while not client.closed.is_set():
            num_received = client.num_received
            if not num_silent:
                try:
                    answer = client.ask_pulse()
                except EngineGone as error:  # it has begun to close
                    return error
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_INTERVAL_S):
                    await client.closed.wait()
            num_silent = num_silent + 1 if client.num_received == num_received else 0
            self._is_late = num_silent > 0
            problem = _problem(answer.result()) if _is_answered(answer) else None
            if num_silent >= SILENT_PROBES:
                problem = EngineSilent(f"the engine has not answered for {num_silent * PROBE_INTERVAL_S:g} s")
                self._note_silence(problem)
            elif problem is None:
                self._note_silence(None)
            if problem is not None and (num_silent == 0 or num_silent >= LOST_PROBES):
                client.abort(problem)
                await client.closed.wait()
                return problem
        return EngineGone("the connection to the engine was lost")

    def _note_silence(self, silence: EngineSilent | None) -> None:
        if silence is not None and self._silence is None:
            logger.warning("%s; it gets no requests until it does", silence)
        elif silence is None and self._silence is not None:
            logger.info("the engine answers again")
        self._silence = silence


def _problem(pulse: Pulse) -> EngineSilent | None:
    """Why an engine with this pulse cannot be used, if it cannot."""
    if not pulse.is_stuck:
        return None
    return EngineSilent(f"the engine's main loop has made no progress for {pulse.late_s:.0f} s")


def _is_answered(answer: asyncio.Future[Pulse]) -> bool:
    return answer.done() and not answer.cancelled() and answer.exception() is None
