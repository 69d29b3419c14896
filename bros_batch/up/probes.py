"""Probes: how `up` asks each service whether it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone

Probe = Callable[[], Awaitable[bool]]


async def redis_answers(socket: Path, timeout_s: float) -> bool:
    """Whether Redis answers PING. While it loads its file, it answers with an error, which is no answer here."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith(b"+PONG")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def engine_answers(url: str, token: str | None, timeout_s: float) -> bool:
    """Whether the engine's I/O thread answers. Whether its main loop makes progress, the engine judges itself."""
    try:
        client = await EngineClient.connect(url, token, timeout_s)
    except OSError:
        return False
    try:
        await client.pulse(timeout_s)
    except OSError:
        return False
    finally:
        client.abort(EngineGone("the probe is over"))
    return True


def auth_headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def problems_in(answer: httpx.Response) -> dict[str, str]:
    """What an answer of /ready says of the services that are not ready, by name. Raises ValueError if it is none."""
    body: Any = answer.json()
    if not isinstance(body, dict):
        raise ValueError("the answer is not a JSON object")
    return {name: str(word) for name, word in body.items() if name != "status" and word != "ok"}


class WebProbe:
    """Asks the web process whether it answers, and what it says of the others."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url
        self.problems: dict[str, str] = {}  # of the others, by name, as of the latest answer

    async def is_healthy(self) -> bool:
        """Whether the process answers at all."""
        try:
            return (await self._http.get(f"{self._url}/health")).status_code == 200
        except httpx.HTTPError:
            return False

    async def is_ready(self) -> bool:
        """Whether everything is ready. Sets `problems`."""
        try:
            answer = await self._http.get(f"{self._url}/ready")
            if answer.status_code not in (200, 503):
                raise ValueError(f"HTTP {answer.status_code}")
            self.problems = problems_in(answer)
        except (httpx.HTTPError, ValueError):
            self.problems = {"web": "does not answer"}
            return False
        except asyncio.CancelledError:
            self.problems = {"web": "does not answer"}
            raise
        return answer.status_code == 200
