"""The limits of requests: the range of every number, and what an engine has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, get_args

from engine.wire.request_terms import GrammarKind

MAX_TOKENS = 2**31 - 1
MAX_CHOICES = 128
MAX_PRIORITY = 1_000_000
MAX_LOGPROBS = 20
GRAMMAR_KINDS: tuple[str, ...] = get_args(GrammarKind)
# Of a whole item: log-probabilities of prompt tokens, which have to fit into a frame, and tokens of all its prompts, of
# which the engine keeps lists.
MAX_PROMPT_LOGPROBS = 500_000
MAX_ITEM_TOKENS = 4_000_000


class Range(NamedTuple):
    """An interval of valid numbers, both ends included. It contains neither NaN nor infinity."""

    least: float
    most: float

    def has(self, value: float) -> bool:
        return self.least <= value <= self.most


# Whatever a sampler computes from values in these ranges in float32 is finite.
SAMPLING_RANGES = {
    "max_tokens": Range(0, MAX_TOKENS),
    "min_tokens": Range(0, MAX_TOKENS),
    "temperature": Range(0, 100),
    "top_p": Range(0, 1),
    "top_k": Range(0, MAX_TOKENS),
    "min_p": Range(0, 1),
    "seed": Range(-(2**63), 2**64 - 1),
    "repetition_penalty": Range(0.01, 100),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "logprobs": Range(0, MAX_LOGPROBS),
    "prompt_logprobs": Range(0, MAX_LOGPROBS),
}
POOLINGS = ("last", "mean")
BIAS_RANGE = Range(-100, 100)
SLO_RANGE_S = Range(0.001, 3600)
SLOWDOWN_RANGE = Range(0.001, 100)
PRIORITY_RANGE = Range(-MAX_PRIORITY, MAX_PRIORITY)
DEADLINE_RANGE_S = Range(0, 1e11)  # in Unix time
CHOICES_RANGE = Range(1, MAX_CHOICES)


class EngineLimits(Protocol):
    """What an engine has, as `Welcome` tells it."""

    @property
    def max_model_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The limits of a model whose engine has not been asked."""

    max_model_len: int
    vocab_size: int
