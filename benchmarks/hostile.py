"""How much memory does a hostile client cost the web process, and do others still get answers at once?

    python -m benchmarks.hostile [--requests 5000] [--connections 32]

`bros-batch up` runs with a simulated engine. Its web process gets hostile requests of many kinds from several
connections at once, while another client asks for /health twenty times per second. The report has the web process's
peak memory above its idle memory, and the latency of /health. The targets are 300 MB and 100 ms (99th percentile).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.hostile_requests import KINDS, Hostile, get
from benchmarks.machine import write_result
from benchmarks.own_up import own_up

TARGET_MB, TARGET_MS = 300.0, 100.0
HEALTH_INTERVAL_S = 0.05
SAMPLE_S = 0.01
PATIENCE_S = 15.0  # for one hostile request
SETTLE_S = 3.0


@dataclass
class Web:
    """The web process of an `up`."""

    port: int
    process: psutil.Process
    idle_mb: float = 0.0
    peak_mb: float = 0.0
    peak_files: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def rss_mb(self) -> float:
        return float(self.process.memory_info().rss) / 1e6

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Sample memory and open files until the block ends."""
        self.idle_mb = self.peak_mb = self.rss_mb
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.peak_mb = max(self.peak_mb, self.rss_mb)
            self.peak_files = max(self.peak_files, self.process.num_fds())


@contextlib.contextmanager
def running_up() -> Iterator[Web]:
    """Run `bros-batch up` with a simulated engine in a new directory."""
    with (
        tempfile.TemporaryDirectory(prefix="bros-hostile-", ignore_cleanup_errors=True) as directory,
        own_up(Path(directory) / "data", "--workers", "1", engine=("--runner", "simulated")) as state,
    ):
        yield Web(int(state["url"].rpartition(":")[2]), psutil.Process(state["children"]["web"]))


async def attack(port: int, hostile: Hostile) -> str:
    """Send one request. Returns the status of the answer, or what happened instead."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except (OSError, TimeoutError):
        return "no connection"
    try:
        async with asyncio.timeout(PATIENCE_S):
            size = -(-len(hostile.data) // hostile.pieces)
            for start in range(0, len(hostile.data), size):
                writer.write(hostile.data[start : start + size])
                await writer.drain()
                await asyncio.sleep(hostile.pause_s)
            if not hostile.waits:
                return "half-sent"
            line = await reader.readline()
            return line.split()[1].decode() if line.startswith(b"HTTP/") else "closed"
    except TimeoutError:
        return "no answer"
    except OSError:
        return "closed"
    finally:
        if hostile.waits:
            writer.transport.abort()
        else:
            # It stays open for as long as the server lets it.
            _abandoned.append(writer)


_abandoned: list[asyncio.StreamWriter] = []


async def health_latencies(port: int) -> AsyncIterator[float]:
    """Ask for /health regularly, each time on a new connection, and yield how long each answer took, in ms."""
    request = get("/health", b"Connection: close")
    while True:
        start_s = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"/health answered {answer[:100]!r}")
        writer.close()
        yield (time.perf_counter() - start_s) * 1e3
        await asyncio.sleep(HEALTH_INTERVAL_S)


def measure_health(port: int, latencies: list[float], stop: threading.Event) -> None:
    """Measure on a thread and loop of its own, so that the attack's own work does not count."""

    async def run() -> None:
        async for latency_ms in health_latencies(port):
            latencies.append(latency_ms)
            if stop.is_set():
                return

    asyncio.run(run())


async def flood(port: int, num_requests: int, num_connections: int) -> dict[str, dict[str, int]]:
    """Send hostile requests of all kinds, mixed. Returns how many of each kind ended how."""
    rng = random.Random(0)
    names = [name for _, name in zip(range(num_requests), _repeat(KINDS), strict=False)]
    rng.shuffle(names)
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    made = {name: make() for name, make in KINDS.items()}

    async def client() -> None:
        while names:
            name = names.pop()
            outcomes[name][await attack(port, made[name])] += 1

    await asyncio.gather(*(client() for _ in range(num_connections)))
    return {name: dict(counts) for name, counts in outcomes.items()}


def _repeat(names: dict[str, Any]) -> Iterator[str]:
    while True:
        yield from names


def flood_elsewhere(port: int, num_requests: int, num_connections: int) -> dict[str, dict[str, int]]:
    """Run the flood in a process of its own: building and sending its data must not delay the measurement."""
    command = [sys.executable, "-m", "benchmarks.hostile", "--attack", str(port)]
    command += ["--requests", str(num_requests), "--connections", str(num_connections)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    outcomes: dict[str, dict[str, int]] = json.loads(answer.stdout)
    return outcomes


def measure(num_requests: int, num_connections: int) -> dict[str, Any]:
    """Start the server, attack it, and return the figures."""
    with running_up() as web:
        latencies: list[float] = []
        stop = threading.Event()
        health = threading.Thread(target=measure_health, args=(web.port, latencies, stop))
        time.sleep(SETTLE_S)
        health.start()
        start_s = time.perf_counter()
        with web.watched():
            outcomes = flood_elsewhere(web.port, num_requests, num_connections)
            stop.set()
            health.join()
        took_s = time.perf_counter() - start_s
        time.sleep(SETTLE_S)
        return {
            "requests": num_requests,
            "connections": num_connections,
            "seconds": round(took_s, 1),
            "idle_mb": round(web.idle_mb, 1),
            "peak_above_idle_mb": round(web.peak_mb - web.idle_mb, 1),
            "after_above_idle_mb": round(web.rss_mb - web.idle_mb, 1),
            "peak_open_files": web.peak_files,
            "health_requests": len(latencies),
            "health_p50_ms": round(percentile(latencies, 0.50), 2),
            "health_p99_ms": round(percentile(latencies, 0.99), 2),
            "health_max_ms": round(max(latencies), 2),
            "targets": {"peak_above_idle_mb": TARGET_MB, "health_p99_ms": TARGET_MS},
            "outcomes": outcomes,
        }


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument(
        "--connections", type=int, default=32, help="connections at a time, besides abandoned ones"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--attack", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        print(json.dumps(asyncio.run(flood(options.attack, options.requests, options.connections))))
        return
    result = measure(options.requests, options.connections)
    for name, counts in result["outcomes"].items():
        print(f"{name:28} {', '.join(f'{count} x {what}' for what, count in sorted(counts.items()))}")
    print(
        f"\n{result['requests']} requests in {result['seconds']} s: peak memory {result['peak_above_idle_mb']} MB "
        f"above idle (target {TARGET_MB:g}), /health p50 {result['health_p50_ms']} ms, p99 "
        f"{result['health_p99_ms']} ms (target {TARGET_MS:g}), {result['peak_open_files']} open files"
    )
    print(f"written to {write_result(options.out, 'hostile', result)}")


if __name__ == "__main__":
    main()
