"""One phase of the serving benchmark: send chats, bulk or both to a server and record the answers within a window.

        lead-in              warm-up          window                  drain
    |----------------------|---------|--------------------------|----------------|----------------------|
    bulk only: until as    chats begin; bulk goes on             until the window's   until the documents
    many documents ended                                         last chat is answered; under way ended
    as are in flight                                             all loads go on

Bulk is streamed as well. On a slow machine a document may take the whole window, and counting documents when they end,
or in proportion to their time, would credit the window with prompts computed before it. Tokens therefore count when
they arrive. A server may send several at once; how many is known when the document has ended. Reading a piece takes the
client about 30 us; its CPU time is part of the result.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from benchmarks.serving.client import Answer, Client
from benchmarks.serving.cpu_times import cpu_times
from benchmarks.serving.load import Ask, Load, chats, documents

BE_PRIORITY = 1  # bros-batch: bulk, like every priority above 0; vLLM: after the default priority 0
PATIENCE_S = 60.0  # for the metrics of a server
# In them, where the engine did not answer the web process in time. It answers between two steps.
SILENT_ENGINE = 'bros_up{part="engine"} 0.0'
LANES = {"rt": ("rt",), "be": ("be",), "both": ("rt", "be")}


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of the parts of a phase; those of lead-in and drain are maxima."""

    window_s: float = 60.0
    warm_up_s: float = 10.0
    lead_in_s: float = 120.0
    drain_s: float = 30.0


@dataclass
class Observed:
    """Observations of a phase: chats scheduled in the window, and all documents.

    `cpu_s` and `counters` are the CPU seconds and the server's own counters over the window; a busy server reports its
    counters late, so that they cover `counted_s`. `cost_model_error` is the error of predicted step times at its end,
    which only a bros-batch server reports.
    """

    phase: str
    start_s: float = 0.0
    end_s: float = 0.0
    chats: list[Answer] = field(default_factory=list)
    documents: list[Answer] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    counted_s: float = 0.0
    cost_model_error: float | None = None

    @property
    def window_s(self) -> float:
        return self.end_s - self.start_s

    def contains(self, moment_s: float) -> bool:
        """Return whether the moment lies in the window."""
        return self.start_s <= moment_s < self.end_s


async def observe(
    client: Client, load: Load, timing: Timing, phase: str, server_pids: Sequence[int] = ()
) -> Observed:
    """Run the phase ("rt", "be" or "both"). Afterwards none of its requests is open, here or at the server."""
    observed = Observed(phase)
    # A pause of this program's garbage collector would count as latency of the server.
    gc.collect()
    gc.disable()
    running: list[asyncio.Task[None]] = []
    is_over = False
    senders: list[asyncio.Task[None]] = []
    try:
        if "be" in LANES[phase]:
            source = itertools.takewhile(lambda _: not is_over, documents(load, phase))
            senders = [
                asyncio.create_task(_keep_one_open(client, source, observed.documents))
                for _ in range(load.be_in_flight)
            ]
            running += senders
            await _lead_in(observed.documents, load.be_in_flight, timing.lead_in_s)
        begin_s = time.perf_counter()
        observed.start_s = begin_s + timing.warm_up_s
        observed.end_s = observed.start_s + timing.window_s
        if "rt" in LANES[phase]:
            schedule = chats(load, phase, timing.warm_up_s + timing.window_s + timing.drain_s)
            answers = [Answer(ask, begin_s + ask.due_s) for ask in schedule]
            observed.chats = [each for each in answers if observed.contains(each.due_s)]
            running.append(asyncio.create_task(_chat(client, answers)))
        await _until(observed.start_s)
        before = await metrics(client.url)
        counted_from_s = time.perf_counter()
        cpu_before = cpu_times(server_pids)
        await _until(observed.end_s)
        observed.cpu_s = cpu_times(server_pids).since(cpu_before)
        after = await metrics(client.url)
        observed.counted_s = time.perf_counter() - counted_from_s
        observed.counters = {
            name: value - before.get(name, 0.0) for name, value in after.items() if is_counter(name)
        }
        observed.cost_model_error = after.get("bros_cost_model_error_ratio")
        give_up_s = observed.end_s + timing.drain_s
        while _open(observed.chats) and time.perf_counter() < give_up_s:
            await asyncio.sleep(0.05)
        is_over = True
        if senders:
            await asyncio.wait(senders, timeout=timing.drain_s)
    finally:
        for task in running:
            task.cancel()
        results = await asyncio.gather(*running, return_exceptions=True)
        gc.enable()
    # An exception other than the cancellation above is a bug in this program.
    for result in results:
        if isinstance(result, Exception):
            raise result
    return observed


def _open(answers: list[Answer]) -> bool:
    return any(answer.error == "unfinished" for answer in answers)


async def _keep_one_open(client: Client, source: Iterator[Ask], answers: list[Answer]) -> None:
    """Keep one document in flight: send the next when the last one is answered."""
    for ask in source:
        answer = Answer(ask, time.perf_counter())
        answers.append(answer)
        await client.complete(answer, BE_PRIORITY)
        if answer.error is not None:
            await asyncio.sleep(0.1)  # do not flood a server that rejects everything


async def _chat(client: Client, answers: list[Answer]) -> None:
    """Send each chat at its scheduled time, independently of the others."""
    async with asyncio.TaskGroup() as group:
        for answer in answers:
            await _until(answer.due_s)
            group.create_task(client.complete(answer))


async def _lead_in(answers: list[Answer], count: int, at_most_s: float) -> None:
    """Wait until bulk is in a steady state; at first the server computes only prompts and no output."""
    give_up_s = time.perf_counter() + at_most_s
    while sum(answer.error is None for answer in answers) < count and time.perf_counter() < give_up_s:
        await asyncio.sleep(0.1)


async def _until(when_s: float) -> None:
    await asyncio.sleep(max(when_s - time.perf_counter(), 0.0))


def is_counter(name: str) -> bool:
    """Return whether a metric counts up: `bros_*_total`, `vllm:*_total`, and the count and sum of step times."""
    name = name.partition(".")[0]
    return name.endswith("_total") or name in ("bros_step_seconds_count", "bros_step_seconds_sum")


async def metrics(url: str) -> dict[str, float]:
    """Read the server's metrics by name and lane, summed over all other labels. Empty without a /metrics route.

    Raises TimeoutError if the engine of a bros-batch server stays silent.
    """
    # A server that competes for the CPU may answer late. Without its answer, counters would seem to start at 0.
    async with asyncio.timeout(PATIENCE_S), httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
        answer = await http.get(f"{url}/metrics")
        while SILENT_ENGINE in answer.text:
            answer = await http.get(f"{url}/metrics")
    found: dict[str, float] = {}
    for line in answer.text.splitlines() if answer.status_code == 200 else ():
        series, _, value = line.rpartition(" ")
        name, _, labels = series.partition("{")
        if name.startswith(("bros_", "vllm:")) and not name.endswith("_bucket"):
            lane = labels.partition('lane="')[2].partition('"')[0]
            key = f"{name}.{lane}" if lane else name
            found[key] = found.get(key, 0.0) + float(value)
    return found
