"""The words of the engine: lanes, sampling parameters, SLOs and the events a step produces."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple


class Lane(enum.Enum):
    """Which kind of work a request is: a person waiting (RT) or bulk (BE)."""

    RT = "rt"
    BE = "be"

    __hash__ = object.__hash__  # enum's own is written in Python, and each step looks up lanes and sides


class Side(enum.Enum):
    """The end of a KV block that a lane grows from: RT from slot 0 up, BE from slot B-1 down."""

    LEFT = "left"
    RIGHT = "right"

    __hash__ = object.__hash__

    @staticmethod
    def of(lane: Lane) -> Side:
        return Side.LEFT if lane is Lane.RT else Side.RIGHT


class Policy(enum.Enum):
    """How steps are packed: BROS, or a baseline to measure it against (`engine.core.policy.fixed_budget`)."""

    BROS = "bros"
    PRIORITY = "priority"
    FCFS = "fcfs"


class Preemption(enum.Enum):
    """What a victim loses: a suffix, everything, or (NONE) nothing, and RT waits for memory."""

    TRUNCATE = "truncate"
    WHOLE = "whole"
    NONE = "none"


class Checkpoint(enum.Enum):
    """When KV is copied to host memory: as it is about to be overwritten, or never."""

    LAZY = "lazy"
    NONE = "none"


class FinishReason(enum.Enum):
    """Why a request ended. STOP and LENGTH are successes; their values are OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SLO:
    """What an RT request was promised: time to first token and time per output token after it, in seconds."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. The wire carries the same fields (`engine.wire.protocol.Sampling`).

    `top_k` 0 means off. `logprobs` None means none; k >= 0 means the sampled token's and the k likeliest.
    `logit_bias` holds (token id, bias) pairs. `stop` strings are matched on decoded text by the runner.
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


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one output position: of the sampled token, and the likeliest (token id, logprob)."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class TokenEvent(NamedTuple):
    """A request got one more output token. A tuple, because there is one a token."""

    request_id: str
    token_id: int
    logprobs: TokenLogprobs | None


class FinishedEvent(NamedTuple):
    """A request ended; its KV and row are free. `message` says what was wrong when the reason is ERROR.

    Times in seconds since arrival (`tpot_s`: mean time per output token after the first); None where it never came
    that far. `slo_met` says whether an RT request kept both its promises; None in the BE lane and after an abort.
    """

    request_id: str
    lane: Lane
    reason: FinishReason
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    e2e_s: float
    queue_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    slo_met: bool | None = None
    message: str | None = None


Event = TokenEvent | FinishedEvent
