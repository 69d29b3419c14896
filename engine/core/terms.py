"""The terms of the engine: lanes, sides, policies, SLOs and sampling parameters."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

GrammarKind = Literal["json_schema", "regex", "lark"]
Pooling = Literal["last", "mean"]


class Lane(enum.Enum):
    """The kind of work a request is: chat (RT) or bulk (BE)."""

    RT = "rt"
    BE = "be"

    __hash__ = (
        object.__hash__
    )  # the hash of Enum is written in Python, and every step looks up lanes and sides


class Side(enum.Enum):
    """The end of a KV block that a lane grows from: RT from slot 0 up, BE from slot B - 1 down."""

    LEFT = "left"
    RIGHT = "right"

    __hash__ = object.__hash__

    @staticmethod
    def of(lane: Lane) -> Side:
        return Side.LEFT if lane is Lane.RT else Side.RIGHT


class Policy(enum.Enum):
    """How steps are packed: by BROS, or by one of the baselines it is measured against
    (`engine.core.policy.fixed_budget`)."""

    BROS = "bros"
    PRIORITY = "priority"
    FCFS = "fcfs"


class Preemption(enum.Enum):
    """What a victim gives up: its newest tokens, everything, or nothing; with NONE, RT waits for memory."""

    TRUNCATE = "truncate"
    WHOLE = "whole"
    NONE = "none"


class Checkpoint(enum.Enum):
    """When KV is copied to host memory: before it is overwritten, or never."""

    LAZY = "lazy"
    NONE = "none"


class FinishReason(enum.Enum):
    """Why a request ended. STOP and LENGTH are successes; their values are those of OpenAI's API."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SLO:
    """The service level objective of an RT request: time to first token (TTFT) and time per output token after it
    (TPOT), in seconds. With `slowdown`, these two times only order the chats among each other, and what bulk may cost
    is this share of the request's time on an engine without bulk (`engine.core.policy.dial`)."""

    ttft_s: float
    tpot_s: float
    slowdown: float | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """The shape that an output has: a JSON schema, a regular expression that matches all of it, or a grammar in
    llguidance's dialect of Lark."""

    kind: GrammarKind
    text: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. The wire carries the same fields (`engine.wire.request_terms.Sampling`).

    `top_k` 0 turns it off. `logprobs` None asks for none; k >= 0 asks for those of the sampled token and of the k
    likeliest ones. `logit_bias` holds (token id, bias) pairs. The runner matches `stop` strings on decoded text. A
    `grammar` limits each token to those that the output so far may go on with, before all else.

    The last three ask for something about the prompt, and `max_tokens` 0 asks for nothing else. `score_token_ids`: the
    log-probabilities of these tokens after the prompt. `prompt_logprobs` k: for each token of the prompt but the first,
    its log-probability and the k likeliest tokens. `pooling`: the last hidden state of the last token of the prompt, or
    the mean over its tokens.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None
    score_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    pooling: Pooling | None = None

    @property
    def asks_about_prompt(self) -> bool:
        return bool(self.score_token_ids) or self.prompt_logprobs is not None or self.pooling is not None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: that of the token there, and (token id, logprob) pairs of the likeliest
    tokens."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class PromptResult:
    """What a request asked about its prompt (see `SamplingParams`).

    All numbers of which there may be many are little-endian bytes, which take no time to pass on. `logprobs` holds for
    each token of the prompt but the first its log-probability as float32, and then the likeliest tokens, each as its id
    (int32) and its log-probability. `hidden` holds float32 values of the last hidden state: one vector of the last
    token, or several vectors whose sum is that over all tokens.
    """

    scores: tuple[float, ...] | None = None
    logprobs: bytes | None = None
    hidden: tuple[bytes, ...] = ()
