"""The load of the serving benchmark: endless bulk documents, and chats on a schedule.

Everything is drawn from a seed, so that every server gets the same lengths at the same times. The prompt tokens also
depend on the name of the phase and on the round: phases have equal lengths and times but different prompts, so that no
phase finds prompts of an earlier one in the prefix cache.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

# Token ids of the reference model that are text of two or more characters: no special tokens, no single bytes.
FIRST_TEXT_ID = 259
END_TEXT_ID = 8192


@dataclass(frozen=True, slots=True)
class Lengths:
    """A lognormal distribution of token counts, rounded and clipped to [`least`, `most`].

    `cv` is the coefficient of variation: standard deviation divided by mean.
    """

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
    """Parameters of a load; lengths are in tokens.

    Bulk is a closed loop: `be_in_flight` documents are open at any time. Chat is an open loop: `rt_rate` chats per
    second on average, even if the server cannot keep up. The times between chats are gamma distributed; they come in
    bursts if the coefficient of variation `rt_burstiness` exceeds 1.
    """

    # A typical draw: 125 chats in the window from 10 to 70 s, at most 10 of them in one second.
    seed: int = 2
    # Prompt tokens are drawn from this range; the end is exclusive.
    token_ids: tuple[int, int] = (FIRST_TEXT_ID, END_TEXT_ID)
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
    """One request: prompt tokens and number of output tokens. A chat is sent `due_s` after the start of the phase."""

    token_ids: list[int]
    num_tokens: int
    due_s: float = 0.0


def chats(load: Load, phase: str, until_s: float) -> list[Ask]:
    """Return the chats scheduled before `until_s`, in order."""
    arrivals = random.Random(f"{load.seed} rt arrivals")
    shape = 1 / load.rt_burstiness**2
    asks = _asks(load, "rt", phase, load.rt_prompt, load.rt_output)
    schedule: list[Ask] = []
    due_s = 0.0
    while (due_s := due_s + arrivals.gammavariate(shape, 1 / (load.rt_rate * shape))) < until_s:
        ask = next(asks)
        schedule.append(Ask(ask.token_ids, ask.num_tokens, due_s))
    return schedule


def documents(load: Load, phase: str) -> Iterator[Ask]:
    """Yield documents without end. A new one is sent whenever one finishes, so a faster server processes more."""
    return _asks(load, "be", phase, load.be_prompt, load.be_output)


def _asks(load: Load, lane: str, phase: str, prompt: Lengths, output: Lengths) -> Iterator[Ask]:
    lengths = random.Random(f"{load.seed} {lane} lengths")
    tokens = random.Random(f"{load.seed} {lane} tokens {phase} {load.round}")
    vocabulary = range(*load.token_ids)
    while True:
        num_prompt_tokens, num_tokens = prompt.draw(lengths), output.draw(lengths)
        yield Ask(tokens.choices(vocabulary, k=num_prompt_tokens), num_tokens)
