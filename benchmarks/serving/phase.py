"""One phase of a serving benchmark: chats, bulk or both go to a server, and what comes back within a window is kept.

        lead-in              warm-up          window                  drain
    |----------------------|---------|--------------------------|----------------|----------------------|
    bulk only: until as    chats begin; bulk goes on             until the window's   until the documents
    many documents ended                                         last chat is answered; under way ended
    as are in flight                                             all loads go on

Bulk is streamed as well. A document takes up to the whole window on a slow machine; counting documents by their ends,
or in proportion to their time, would credit the window with prompts computed before it. Tokens count when they arrive,
each time several together where the server sends them so: how many is known once the document has ended. To read them
takes the client some 30 us each time: its CPU time is part of the result.
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

BE_PRIORITY = 1  # ours: bulk, as is all above 0. vLLM: after those of priority 0, which is who names none
LANES = {"rt": ("rt",), "be": ("be",), "both": ("rt", "be")}


@dataclass(frozen=True, slots=True)
class Timing:
    """How long each part of a phase takes, at most for lead-in and drain."""

    window_s: float = 60.0
    warm_up_s: float = 10.0
    lead_in_s: float = 120.0
    drain_s: float = 30.0


@dataclass
class Observed:
    """What a phase brought: chats that were due in the window, every document; of the window, who used how many CPU
    seconds and what the server itself counted; and at its end, how far our own predicted step times were off."""

    phase: str
    start_s: float = 0.0
    end_s: float = 0.0
    chats: list[Answer] = field(default_factory=list)
    documents: list[Answer] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    cost_model_error: float | None = None

    @property
    def window_s(self) -> float:
        return self.end_s - self.start_s

    def contains(self, moment_s: float) -> bool:
        """Whether the window does."""
        return self.start_s <= moment_s < self.end_s


async def observe(
    client: Client, load: Load, timing: Timing, phase: str, server_pids: Sequence[int] = ()
) -> Observed:
    """Runs the phase ("rt", "be" or "both"). At its end nothing of it is left running, here or at the server."""
    observed = Observed(phase)
    # A pause of this program's garbage collector would pass for the server's.
    gc.collect()
    gc.disable()
    running: list[asyncio.Task[None]] = []
    is_over = False
    places: list[asyncio.Task[None]] = []
    try:
        if "be" in LANES[phase]:
            source = itertools.takewhile(lambda _: not is_over, documents(load, phase))
            places = [
                asyncio.create_task(_one_place(client, source, observed.documents))
                for _ in range(load.be_in_flight)
            ]
            running += places
            await _lead_in(observed.documents, load.be_in_flight, timing.lead_in_s)
        begin_s = time.perf_counter()
        observed.start_s = begin_s + timing.warm_up_s
        observed.end_s = observed.start_s + timing.window_s
        if "rt" in LANES[phase]:
            timetable = chats(load, phase, timing.warm_up_s + timing.window_s + timing.drain_s)
            answers = [Answer(ask, begin_s + ask.due_s) for ask in timetable]
            observed.chats = [each for each in answers if observed.contains(each.due_s)]
            running.append(asyncio.create_task(_chat(client, answers)))
        await _until(observed.start_s)
        before = await metrics(client.url)
        cpu_before = cpu_times(server_pids)
        await _until(observed.end_s)
        observed.cpu_s = cpu_times(server_pids).since(cpu_before)
        after = await metrics(client.url)
        observed.counters = {
            name: value - before.get(name, 0.0) for name, value in after.items() if is_counter(name)
        }
        observed.cost_model_error = after.get("bros_cost_model_error_ratio")
        give_up_s = observed.end_s + timing.drain_s
        while _open(observed.chats) and time.perf_counter() < give_up_s:
            await asyncio.sleep(0.05)
        is_over = True
        if places:
            await asyncio.wait(places, timeout=timing.drain_s)
    finally:
        for task in running:
            task.cancel()
        results = await asyncio.gather(*running, return_exceptions=True)
        gc.enable()
    # What a place or the timetable ran into, other than being cancelled here, is a fault of this program.
    for result in results:
        if isinstance(result, Exception):
            raise result
    return observed


def _open(answers: list[Answer]) -> bool:
    return any(answer.error == "unfinished" for answer in answers)


async def _one_place(client: Client, source: Iterator[Ask], answers: list[Answer]) -> None:
    """One of the documents in flight after another."""
    for ask in source:
        answer = Answer(ask, time.perf_counter())
        answers.append(answer)
        await client.complete(answer, BE_PRIORITY)
        if answer.error is not None:
            await asyncio.sleep(0.1)  # a server that refuses everything is not asked as fast as it can refuse


async def _chat(client: Client, answers: list[Answer]) -> None:
    """Sends each chat when it is due, whatever became of those before it."""
    async with asyncio.TaskGroup() as group:
        for answer in answers:
            await _until(answer.due_s)
            group.create_task(client.complete(answer))


async def _lead_in(answers: list[Answer], count: int, at_most_s: float) -> None:
    """Until bulk has its stride: at first there are prompts only, and no output to count."""
    give_up_s = time.perf_counter() + at_most_s
    while sum(answer.error is None for answer in answers) < count and time.perf_counter() < give_up_s:
        await asyncio.sleep(0.1)


async def _until(when_s: float) -> None:
    await asyncio.sleep(max(when_s - time.perf_counter(), 0.0))


def is_counter(name: str) -> bool:
    """`bros_*_total` or `vllm:*_total`, and how many iterations of what length."""
    name = name.partition(".")[0]
    return name.endswith("_total") or name in ("bros_step_seconds_count", "bros_step_seconds_sum")


async def metrics(url: str) -> dict[str, float]:
    """What the server says of itself, by name and lane, over all other labels. Empty for a server without /metrics."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        try:
            answer = await http.get(f"{url}/metrics")
        except httpx.TransportError:
            return {}
    found: dict[str, float] = {}
    for line in answer.text.splitlines() if answer.status_code == 200 else ():
        series, _, value = line.rpartition(" ")
        name, _, labels = series.partition("{")
        if name.startswith(("bros_", "vllm:")) and not name.endswith("_bucket"):
            lane = labels.partition('lane="')[2].partition('"')[0]
            key = f"{name}.{lane}" if lane else name
            found[key] = found.get(key, 0.0) + float(value)
    return found
