"""What HTTP adds to a chat request: parsing, template, tokeniser, the engine's socket and the reply, not the model."""

from __future__ import annotations

import asyncio
import os
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import pytest

from engine.wire.client import EngineClient
from engine.wire.protocol import Sampling
from tests.services import RedisServer
from tests.web.serving import MODEL_NAME, Web, whole_service

MAX_ADDED_S = 0.005
REQUESTS = 60
ROUNDS = 5
MESSAGES: Any = [{"role": "user", "content": "How long does this take? " * 40}]


def over_http(web: Web) -> float:
    """Median time to the first chunk of a stream."""
    body = {"model": MODEL_NAME, "messages": MESSAGES, "max_tokens": 1, "stream": True}
    times = []
    with httpx.Client(base_url=web.url) as http:
        for _ in range(REQUESTS):
            begun_s = perf_counter()
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_raw())
                times.append(perf_counter() - begun_s)
                assert answer.status_code == 200
    return statistics.median(times)


async def over_the_wire(web: Web) -> float:
    """Median time to the first token, asked of the engine itself."""
    prompt = web.text.encode_chat(MESSAGES)
    client = await EngineClient.connect(web.settings.resolved_engine_url)
    times = []
    for _ in range(REQUESTS):
        begun_s = perf_counter()
        async with client.submit(prompt, Sampling(max_tokens=1)) as stream:
            async for _message in stream:
                times.append(perf_counter() - begun_s)
                break
    await client.close()
    return statistics.median(times)


@pytest.mark.slow
def test_http_adds_little(redis_server: RedisServer, text_model: Path) -> None:
    """The best of a few rounds; a machine that is busy with other things measures those."""
    if os.getloadavg()[0] > (os.cpu_count() or 1):
        pytest.skip("the machine is busy with other things")
    with whole_service(redis_server.url, text_model) as (web, _):
        over_http(web)
        added_s = min(over_http(web) - asyncio.run(over_the_wire(web)) for _ in range(ROUNDS))
    assert added_s < MAX_ADDED_S, f"HTTP adds {added_s * 1000:.1f} ms"
    print(f"HTTP adds {added_s * 1000:.2f} ms to the first token")
