"""Measures the latency that everything except the model adds to a chat: over the engine's socket, and over HTTP.

    python -m benchmarks.chat_latency [--requests 500] [--out benchmarks/results]

Requests run one at a time, are greedy, and ask for one token; their latency is the time to the end of the response. The
engine has a simulated runner that takes no time. "added" is the latency that the client sees minus the time to first
token that the engine reports.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import write_result
from bros_batch.settings import DEMO_MODEL_DIR
from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone
from engine.wire.request_terms import Sampling

WARM_UP = 50


@asynccontextmanager
async def running(command: list[str], env: dict[str, str]) -> AsyncIterator[None]:
    process = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, **env}, stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def connected(url: str) -> EngineClient:
    deadline_s = time.monotonic() + 30
    while True:
        try:
            return await EngineClient.connect(url)
        except EngineGone:
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(0.05)


async def socket_latencies(client: EngineClient, num_requests: int) -> list[float]:
    latencies_s = []
    sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
    for i in range(num_requests):
        started_s = time.perf_counter()
        async with client.submit([10, 11, 12, 13 + i % 100], sampling) as stream:
            async for _ in stream:
                latencies_s.append(time.perf_counter() - started_s)
                break
    return latencies_s


async def http_latencies(url: str, num_requests: int, *, stream: bool) -> list[float]:
    latencies_s = []
    body = {
        "model": "bros-demo",
        "messages": [{"role": "user", "content": "What is the total of this invoice? Total: 12.50 EUR"}],
        "max_tokens": 1,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        while (await client.post("/v1/chat/completions", json=body)).status_code != 200:
            await asyncio.sleep(0.05)
        for _ in range(num_requests):
            started_s = time.perf_counter()
            (await client.post("/v1/chat/completions", json=body)).raise_for_status()
            latencies_s.append(time.perf_counter() - started_s)
    return latencies_s


def percentiles_ms(latencies_s: list[float]) -> dict[str, float]:
    ordered = sorted(latencies_s[WARM_UP:])
    return {
        "p50_ms": round(statistics.median(ordered) * 1e3, 3),
        "p99_ms": round(ordered[len(ordered) * 99 // 100] * 1e3, 3),
    }


async def measure(num_requests: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "run").mkdir()
        url = f"unix://{directory}/run/engine.sock"
        engine = ["-m", "engine", "--runner", "simulated", "--model", str(DEMO_MODEL_DIR)]
        engine += ["--served-model-name", "bros-demo", "--listen", url]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        env = {"BROS_DATA_DIR": directory, "BROS_ENGINE_URL": url, "BROS_PORT": str(port)}
        async with running(engine, env):
            client = await connected(url)
            result = {"socket": percentiles_ms(await socket_latencies(client, num_requests))}
            result["engine"] = {
                "p50_ms": round((await client.stats())["lanes"]["rt"]["ttft"]["p50_s"] * 1e3, 3)
            }
            subprocess.run(
                [sys.executable, "-m", "cli", "db", "upgrade"], env={**os.environ, **env}, check=True
            )
            async with running(["-m", "bros_batch.web"], env):
                base = f"http://127.0.0.1:{port}"
                await reachable(base)
                result["http"] = percentiles_ms(await http_latencies(base, num_requests, stream=False))
                result["http_stream"] = percentiles_ms(await http_latencies(base, num_requests, stream=True))
            await client.close()
    for name in ("socket", "http", "http_stream"):
        result[name]["added_p50_ms"] = round(result[name]["p50_ms"] - result["engine"]["p50_ms"], 3)
    return result


async def reachable(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                await client.get(f"{url}/health")
                return
            except httpx.TransportError:
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments.requests + WARM_UP))
    for name, values in result.items():
        print(f"{name:12}", "  ".join(f"{key} {value:8.3f}" for key, value in values.items()))
    print(write_result(arguments.out, "chat_latency", result))


if __name__ == "__main__":
    main()
