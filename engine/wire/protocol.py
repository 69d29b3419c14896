"""The words on the wire: frames of the RT lane's socket, and the BE lane's work items and results.

A frame is a 4-byte big-endian length and that many bytes of msgpack: one tagged message. The first frame in each
direction is `Hello` and `Welcome`; a version that differs closes the connection with an `Error` frame.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 32 * 1024 * 1024
LENGTH_PREFIX = struct.Struct(">I")

LaneName = Literal["rt", "be"]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class Sampling(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How tokens are drawn; the fields and defaults of `engine.core.terms.SamplingParams`."""

    max_tokens: Annotated[int, Meta(ge=1)]
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    temperature: NonNegative = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    min_p: Fraction = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[TokenId, ...] = ()
    ignore_eos: bool = False
    repetition_penalty: Annotated[float, Meta(gt=0)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: tuple[tuple[TokenId, float], ...] = ()
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class Slo(Struct, frozen=True):
    """Per-request service level: time to first token and time per further output token."""

    ttft_s: Annotated[float, Meta(gt=0)]
    tpot_s: Annotated[float, Meta(gt=0)]


class PositionLogprobs(Struct, frozen=True, array_like=True):
    """Log-probability of the token drawn, and the likeliest as (token id, logprob), likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


# Client to engine -------------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, tag="hello"):
    """First frame of a client. `token` is the shared secret that a TCP listener asks for."""

    version: int = PROTOCOL_VERSION
    token: str | None = None


class Submit(Struct, frozen=True, tag="submit", omit_defaults=True):
    """Start a request; `id` is the client's, unique among its open requests on this connection."""

    id: str
    token_ids: list[TokenId]
    sampling: Sampling
    lane: LaneName = "rt"
    slo: Slo | None = None
    priority: int = 0
    deadline_unix_s: float | None = None


class Cancel(Struct, frozen=True, tag="cancel"):
    """Stop a request; nothing more is sent for it. An unknown id is no error: it just ended."""

    id: str


class StatsQuery(Struct, frozen=True, tag="stats?", omit_defaults=True):
    """Ask for one `Stats`; `with_memory` adds `memory`, a picture of KV memory."""

    with_memory: bool = False


ClientMessage = Hello | Submit | Cancel | StatsQuery

# Engine to client -------------------------------------------------------------------------------------------


class Welcome(Struct, frozen=True, tag="welcome"):
    """First frame of the engine."""

    version: int
    engine_id: str
    model: str
    max_model_len: int
    vocab_size: int


class Tokens(Struct, frozen=True, tag="tokens", omit_defaults=True):
    """One or more further output tokens; `logprobs`, where asked for, has one entry a token."""

    id: str
    ids: list[int]
    logprobs: list[PositionLogprobs] | None = None


class Finished(Struct, frozen=True, tag="finished", omit_defaults=True):
    """The request is over. `message` is set when the reason is `error`."""

    id: str
    reason: Literal["stop", "length", "abort", "error"]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    message: str | None = None


class Rejected(Struct, frozen=True, tag="rejected", omit_defaults=True):
    """The request was not started. Codes: `invalid_request`, `context_length_exceeded`, `overloaded` (with
    `retry_after_s`), `draining`."""

    id: str
    code: str
    message: str
    retry_after_s: float | None = None


class Stats(Struct, frozen=True, tag="stats"):
    """A snapshot of the engine: plain names to numbers, lists of numbers or strings."""

    values: dict[str, Any]


class Error(Struct, frozen=True, tag="error"):
    """The connection is unusable and closes after this frame."""

    code: str
    message: str


EngineMessage = Welcome | Tokens | Finished | Rejected | Stats | Error

# The BE lane: entries of Redis streams ----------------------------------------------------------------------


class WorkItem(Struct, frozen=True, omit_defaults=True):
    """One document, ready to compute. `(item_id, epoch)` names the delivery; results carry both back."""

    item_id: int
    epoch: int
    job_id: str
    token_ids: list[TokenId]
    sampling: Sampling
    n: Annotated[int, Meta(ge=1)] = 1
    priority: int = 0
    deadline_unix_s: float | None = None


class Choice(Struct, frozen=True, omit_defaults=True):
    """One of a work item's n outputs. `token_ids` ends with the stop token if one ended it."""

    token_ids: list[int]
    reason: Literal["stop", "length"]
    logprobs: list[PositionLogprobs] | None = None


class WorkResult(Struct, frozen=True, omit_defaults=True):
    """What became of a delivery: choices, or an error (`error_code` set)."""

    item_id: int
    epoch: int
    job_id: str
    engine_id: str
    choices: list[Choice] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error_code: str | None = None
    error_message: str | None = None


# Redis keys both sides use.
# Items: one stream a model; entry fields `p` (WorkItem), `i` (item id), `e` (epoch).
# Results: one stream; entry fields `p` (WorkResult), `s` (items stream key), `x` (entry id there, to acknowledge).

ENGINE_GROUP = "engines"
RECORD_GROUP = "recorders"
RESULTS_KEY = "bros:results"
GENERATION_KEY = "bros:generation"
CANCEL_CHANNEL = "bros:cancel"


def items_key(model: str) -> str:
    """The stream that feeds engines serving `model`."""
    return f"bros:items:{model}"


def engine_key(engine_id: str) -> str:
    """Where an engine keeps its heartbeat: a msgpack map that expires when the engine stops renewing it."""
    return f"bros:engine:{engine_id}"


encode = msgspec.msgpack.Encoder().encode
decode_client_message = msgspec.msgpack.Decoder(ClientMessage).decode
decode_engine_message = msgspec.msgpack.Decoder(EngineMessage).decode
decode_work_item = msgspec.msgpack.Decoder(WorkItem).decode
decode_work_result = msgspec.msgpack.Decoder(WorkResult).decode


def frame(message: Struct) -> bytes:
    """One message as it goes on the wire: length prefix and msgpack."""
    body = encode(message)
    return LENGTH_PREFIX.pack(len(body)) + body
