"""What requests consist of, on sockets and in streams alike: sampling parameters, grammars, SLOs and log-probabilities.

The types limit only what is decoded: the length of texts and lists. Which values an engine can compute with is decided
by `engine.wire.request_problems`, so that a request with any other value is rejected by its name and its id.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

MAX_ID_CHARS = 128
PROMPT_TAIL_TOKENS = 24  # more than the text of a token depends on, even within a run of byte tokens
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1000
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 1024  # each takes time in every step, which the requests beside it wait for
MAX_GRAMMAR_CHARS = 256 * 1024  # far more than people write; each item carries its grammar through Redis
MAX_SCORES = 1024
LaneName = Literal["rt", "be"]
GrammarKind = Literal["json_schema", "regex", "lark"]
ShortText = Annotated[str, Meta(max_length=MAX_ID_CHARS)]
StopStrings = Annotated[
    tuple[Annotated[str, Meta(max_length=MAX_STOP_CHARS)], ...], Meta(max_length=MAX_STOP_STRINGS)
]
StopTokenIds = Annotated[tuple[int, ...], Meta(max_length=MAX_STOP_TOKEN_IDS)]
LogitBiases = Annotated[tuple[tuple[int, float], ...], Meta(max_length=MAX_LOGIT_BIASES)]
ScoreTokenIds = Annotated[tuple[int, ...], Meta(max_length=MAX_SCORES)]
Pooling = Literal["last", "mean"]


class Grammar(Struct, frozen=True):
    """What an output must look like; `engine.core.terms.Grammar` says what the kinds are."""

    kind: GrammarKind
    text: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARS)]


class Sampling(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How tokens are sampled. The fields and defaults equal those of `engine.core.terms.SamplingParams`.

    `engine.wire.sampling_problems` says which values are valid.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: StopStrings = ()
    stop_token_ids: StopTokenIds = ()
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: LogitBiases = ()
    logprobs: int | None = None
    grammar: Grammar | None = None
    score_token_ids: ScoreTokenIds = ()
    prompt_logprobs: int | None = None
    pooling: Pooling | None = None

    def for_choice(self, index: int) -> Sampling:
        """Return the parameters of one of several choices: a seed advances by one per choice, so choices differ."""
        if self.seed is None or index == 0:
            return self
        return msgspec.structs.replace(self, seed=self.seed + index)


class Slo(Struct, frozen=True):
    """The SLO of one request: time to first token and time per output token after the first, or instead of both the
    slowdown that bulk may cause: 0.05 means 5% slower than without bulk."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    slowdown: float | None = None


class PositionLogprobs(Struct, frozen=True, array_like=True):
    """Log-probability of the token at one position, and `top`: the most likely tokens as (token id, logprob), best
    first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class PromptLogprobs(Struct, frozen=True, array_like=True):
    """Log-probabilities of the tokens of a prompt from the second on.

    For each of them, `values` holds its log-probability as float32, and then the `num_top` most likely tokens, best
    first, each as its id (int32) and its log-probability; all little-endian. There may be half a million, which whoever
    forwards them does not have to decode.
    """

    num_top: int
    values: bytes

    def __post_init__(self) -> None:
        if self.num_top < 0 or len(self.values) % self._row.size:
            raise ValueError(f"{len(self.values)} bytes are not rows of {self.num_top} likeliest tokens")

    def positions(self) -> Iterator[PositionLogprobs]:
        """Yield the log-probabilities token by token."""
        for logprob, *top in self._row.iter_unpack(self.values):
            yield PositionLogprobs(logprob, tuple(zip(top[::2], top[1::2], strict=True)))

    @property
    def num_logprobs(self) -> int:
        """How many there are in all."""
        return len(self.values) // self._row.size * (1 + self.num_top)

    @property
    def _row(self) -> struct.Struct:
        return struct.Struct("<f" + "if" * self.num_top)


class Part(Struct, frozen=True, omit_defaults=True):
    """One of several prompts that begin alike: `token_ids` follow those that all of them begin with."""

    token_ids: list[int]
    sampling: Sampling
