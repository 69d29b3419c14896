"""How fast a machine computed bulk at which time, so that what it did to a measurement can be told from the rest."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone

LOOK_S = 0.5
LEAST_S = 2.0


@dataclass(frozen=True, slots=True)
class Look:
    """The engine's counters at a time: rows of bulk that run, tokens of prompts and of bulk outputs that were computed,
    and those of outputs that have not ended."""

    at_s: float
    running: int
    prompt: float
    output: float
    unfinished: float


@dataclass(slots=True)
class MachinePace:
    """Looks at an engine until it is stopped.

    The work of a token is what it cost on average over the whole time; the pace is the work of a second, and that of
    the whole time is 1.
    """

    looks: list[Look] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def watch(self, engine_url: str) -> None:
        """Look at the engine of this socket until `stop`."""
        asyncio.run(self._watch(engine_url))

    def stop(self) -> None:
        self._is_over.set()

    async def _watch(self, engine_url: str) -> None:
        client = await EngineClient.connect(engine_url)
        try:
            while not self._is_over.is_set():
                self.looks.append(_look(await client.stats()))
                await asyncio.sleep(LOOK_S)
        except EngineGone:
            return
        finally:
            await client.close()

    def between(self, from_s: float, to_s: float) -> float | None:
        """The mean pace of a time; None if the engine computed hardly any bulk then."""
        prompt_s, output_s = self._costs()
        seconds = work = 0.0
        for before, after in _busy(self.looks):
            share = (min(after.at_s, to_s) - max(before.at_s, from_s)) / (after.at_s - before.at_s)
            if share > 0:
                seconds += share * (after.at_s - before.at_s)
                done = prompt_s * (after.prompt - before.prompt) + output_s * (after.output - before.output)
                work += share * done
        return work / seconds if seconds >= LEAST_S and work > 0 else None

    def _costs(self) -> tuple[float, float]:
        """Least squares of the seconds between two looks."""
        xx = xy = yy = xt = yt = 0.0
        for before, after in _busy(self.looks):
            t = after.at_s - before.at_s
            x, y = after.prompt - before.prompt, after.output - before.output
            xx, xy, yy, xt, yt = xx + x * x / t, xy + x * y / t, yy + y * y / t, xt + x, yt + y
        determinant = xx * yy - xy * xy
        if determinant <= 0:
            return 0.0, 0.0
        return max((xt * yy - yt * xy) / determinant, 0.0), max((yt * xx - xt * xy) / determinant, 0.0)


def _busy(looks: Sequence[Look]) -> list[tuple[Look, Look]]:
    return [(before, after) for before, after in pairwise(looks) if before.running and after.running]


def _look(stats: dict[str, Any]) -> Look:
    rt, be = stats["lanes"]["rt"], stats["lanes"]["be"]
    output = be["generated_tokens"]
    prompt = stats["computed_tokens"] - output - rt["generated_tokens"]
    return Look(time.monotonic(), be["running"], prompt, output, output - be["output_tokens"])
