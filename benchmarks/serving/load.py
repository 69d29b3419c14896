"""What a serving benchmark asks of a server: bulk documents without end, chats by a timetable. All of it drawn from a
seed, so that every server gets the same lengths at the same times.

A phase of a run has a name, and its prompts' tokens are drawn from that name and the round too: all have equal lengths
and times but no prompt in common, or the second would find the first one's in the prefix cache.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

# Of the reference model's ids, those that are text of two characters or more: no special tokens, no single bytes.
FIRST_TEXT_ID = 259
END_TEXT_ID = 8192


@dataclass(frozen=True, slots=True)
class Lengths:
    """A lognormal distribution of token counts, given by its mean and coefficient of variation (standard deviation
    over mean), rounded and cut to [`least`, `most`]."""

    mean: float
    cv: float
    least: int
    most: int

    def draw(self, rng: random.Random) -> int:
        variance = math.log(1 + self.cv**2)
        length = rng.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return min(max(round(length), self.least), self.most)


@dataclass(frozen=True, slots=True)
class Load:
    """Bulk is a closed loop: `be_in_flight` documents are open at any time. Chat is an open loop: `rt_rate` a second
    on average, whether or not the server keeps up, with gamma distributed times between them, in bursts if their
    coefficient of variation `rt_burstiness` is over 1. Lengths in tokens."""

    seed: int = (
        2  # 125 chats in the window of 60 s after 10 s, at most 10 of them in one second: a usual draw
    )
    token_ids: tuple[int, int] = (
        FIRST_TEXT_ID,
        END_TEXT_ID,
    )  # prompts are drawn from the first to before the last
    round: int = 0
    be_in_flight: int = 64
    be_prompt: Lengths = Lengths(309, 0.6, 16, 1536)
    be_output: Lengths = Lengths(48, 0.3, 4, 256)
    rt_rate: float = 2.0
    rt_burstiness: float = 2.0
    rt_prompt: Lengths = Lengths(46, 0.8, 4, 512)
    rt_output: Lengths = Lengths(24, 0.5, 2, 256)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: these tokens in, so many out. `due_s` is when a chat is to be sent, from the phase's start."""

    token_ids: list[int]
    num_tokens: int
    due_s: float = 0.0


def chats(load: Load, phase: str, until_s: float) -> list[Ask]:
    """The chats due before `until_s`, in order."""
    arrivals = random.Random(f"{load.seed} rt arrivals")
    shape = 1 / load.rt_burstiness**2
    asks = _asks(load, "rt", phase, load.rt_prompt, load.rt_output)
    timetable: list[Ask] = []
    due_s = 0.0
    while (due_s := due_s + arrivals.gammavariate(shape, 1 / (load.rt_rate * shape))) < until_s:
        ask = next(asks)
        timetable.append(Ask(ask.token_ids, ask.num_tokens, due_s))
    return timetable


def documents(load: Load, phase: str) -> Iterator[Ask]:
    """Documents without end. They are handed out as places fall free, so that a faster server gets further."""
    return _asks(load, "be", phase, load.be_prompt, load.be_output)


def _asks(load: Load, lane: str, phase: str, prompt: Lengths, output: Lengths) -> Iterator[Ask]:
    lengths = random.Random(f"{load.seed} {lane} lengths")
    tokens = random.Random(f"{load.seed} {lane} tokens {phase} {load.round}")
    vocabulary = range(*load.token_ids)
    while True:
        num_prompt_tokens, num_tokens = prompt.draw(lengths), output.draw(lengths)
        yield Ask(tokens.choices(vocabulary, k=num_prompt_tokens), num_tokens)
