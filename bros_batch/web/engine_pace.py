"""What a token of bulk costs now: seconds per prompt token and per output token, fitted to what the engine does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# An output token takes a step of its own, while a step computes many tokens of a prompt.
OUTPUT_WEIGHT = 3.0
# How much that counts beside what is measured.
WEIGHT_OF_GUESS = 0.03
MEMORY_S = 60.0  # seconds with bulk in which the weight of an observation falls to a third
CHAT_MEMORY = 0.97  # the weight of a chat for each one that ended after it
LONGEST_S = 5.0  # between two looks


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Seconds for a token, with the chats of now beside. `doubt` is the standard deviation of their logarithm."""

    prompt_s: float
    output_s: float
    doubt: float

    def seconds(self, prompt_tokens: float, output_tokens: float) -> float:
        return self.prompt_s * prompt_tokens + self.output_s * output_tokens


@dataclass(frozen=True, slots=True)
class ChatPace:
    """The mean time per token of chats that ended while bulk ran, and while none did; None without such chats.

    `in_time` is the share of the latest chats that kept their limits.
    """

    beside_bulk_s: float | None
    alone_s: float | None
    in_time: float | None


@dataclass(slots=True)
class _Mean:
    """A mean in which newer values count more."""

    total: float = 0.0
    count: float = 0.0

    def add(self, total: float, count: float) -> None:
        self.total = self.total * CHAT_MEMORY**count + total
        self.count = self.count * CHAT_MEMORY**count + count

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(frozen=True, slots=True)
class _Look:
    at_s: float
    running: float
    prompt: float
    output: float
    chats: float
    chat_s: float  # the sum of their times per token


class EnginePace:
    """Looks at the counters of the engine, and keeps least squares of the time between two looks.

    While bulk runs, the engine never rests: the time between two looks is that of the prompts and outputs it computed.
    """

    def __init__(self) -> None:
        self._last: _Look | None = None
        self._xx = self._xy = self._yy = self._xt = self._yt = self._seconds = 0.0
        self._beside, self._alone = _Mean(), _Mean()
        self._in_time: float | None = None
        self.running = 0.0  # rows that the engine computes
        self.unfinished_tokens = 0.0  # their output tokens

    def observe(self, stats: Mapping[str, Any], now_s: float) -> None:
        """Look at a snapshot of the counters."""
        rt, be = stats["lanes"]["rt"], stats["lanes"]["be"]
        output = float(be["generated_tokens"])
        prompt = float(stats["computed_tokens"]) - output - float(rt["generated_tokens"])
        chats = float(sum(rt["tpot"]["counts"]))
        look = _Look(now_s, float(be["running"]), prompt, output, chats, rt["tpot"]["sum_s"])
        last = self._last
        self._last = look
        self.running, self.unfinished_tokens = look.running, output - float(be["output_tokens"])
        self._in_time = rt["slo"]["recent_ratio"]
        if last is None:
            return
        if look.chats > last.chats and bool(look.running) == bool(last.running):
            mean = self._beside if look.running else self._alone
            mean.add(look.chat_s - last.chat_s, look.chats - last.chats)
        if not (look.running and last.running):
            return
        t, x, y = now_s - last.at_s, prompt - last.prompt, output - last.output
        if not 0 < t < LONGEST_S or x < 0 or y < 0:
            return
        kept = math.exp(-t / MEMORY_S)
        self._xx = self._xx * kept + x * x / t
        self._xy = self._xy * kept + x * y / t
        self._yy = self._yy * kept + y * y / t
        self._xt = self._xt * kept + x
        self._yt = self._yt * kept + y
        self._seconds = self._seconds * kept + t

    @property
    def chats(self) -> ChatPace:
        """How fast chats are with bulk and without."""
        return ChatPace(self._beside.value, self._alone.value, self._in_time)

    def cost(self) -> TokenCost | None:
        """What tokens cost by what was seen; None if nothing was."""
        if self._seconds < 1.0 or self._xx + self._yy <= 0:
            return None
        # The guess is that output_s = OUTPUT_WEIGHT * prompt_s.
        guess = WEIGHT_OF_GUESS * (self._xx / OUTPUT_WEIGHT**2 + self._yy)
        xx = self._xx + guess * OUTPUT_WEIGHT**2
        yy, xy = self._yy + guess, self._xy - guess * OUTPUT_WEIGHT
        determinant = xx * yy - xy * xy
        prompt_s = (self._xt * yy - self._yt * xy) / determinant
        output_s = (self._yt * xx - self._xt * xy) / determinant
        if prompt_s <= 0 or output_s <= 0:
            # Neither is free: take the guess for their relation.
            weighted = self._xt + OUTPUT_WEIGHT * self._yt
            square = self._xx + 2 * OUTPUT_WEIGHT * self._xy + OUTPUT_WEIGHT**2 * self._yy
            prompt_s = weighted / square
            output_s = OUTPUT_WEIGHT * prompt_s
        return TokenCost(prompt_s, output_s, math.hypot(0.15, 0.8 / math.sqrt(self._seconds)))
