"""Messages between an engine and the rest of the system: frames on its socket, and entries of its Redis streams.

A frame is a 4-byte big-endian length followed by that many bytes of msgpack, which encode one tagged message. The
client's first frame is `Hello` and the engine's is `Welcome`. If their versions differ, the engine sends an `Error`
frame and closes the connection.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

PROTOCOL_VERSION = 2
MAX_FRAME_BYTES = 32 * 1024 * 1024
LENGTH_PREFIX = struct.Struct(">I")

LaneName = Literal["rt", "be"]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class Sampling(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How tokens are sampled. The fields and defaults equal those of `engine.core.terms.SamplingParams`."""

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

    def for_choice(self, index: int) -> Sampling:
        """Return the parameters of one of several choices: a seed advances by one per choice, so choices differ."""
        if self.seed is None or index == 0:
            return self
        return msgspec.structs.replace(self, seed=self.seed + index)


class Slo(Struct, frozen=True):
    """The SLO of one request: time to first token, and time per output token after the first."""

    ttft_s: Annotated[float, Meta(gt=0)]
    tpot_s: Annotated[float, Meta(gt=0)]


class PositionLogprobs(Struct, frozen=True, array_like=True):
    """Log-probability of the sampled token, and `top`: the most likely tokens as (token id, logprob), best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


# Client to engine -------------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, tag="hello"):
    """The first frame of a client. `token` is the shared secret that an engine on TCP requires."""

    version: int = PROTOCOL_VERSION
    token: str | None = None


class Submit(Struct, frozen=True, tag="submit", omit_defaults=True):
    """Start a request. The client chooses `id`, which is unique among the open requests of its connection."""

    id: str
    token_ids: list[TokenId]
    sampling: Sampling
    lane: LaneName = "rt"
    slo: Slo | None = None
    priority: int = 0
    deadline_unix_s: float | None = None


class Cancel(Struct, frozen=True, tag="cancel"):
    """Stop a request; the engine sends nothing more for it. An unknown id is not an error: the request has ended."""

    id: str


class StatsQuery(Struct, frozen=True, tag="stats?", omit_defaults=True):
    """Ask for one `Stats` message. `with_memory` adds `memory`, a map of the KV memory."""

    with_memory: bool = False


ClientMessage = Hello | Submit | Cancel | StatsQuery

# Engine to client -------------------------------------------------------------------------------------------


class Welcome(Struct, frozen=True, tag="welcome"):
    """The first frame of the engine."""

    version: int
    engine_id: str
    model: str
    max_model_len: int
    vocab_size: int


class Tokens(Struct, frozen=True, tag="tokens", omit_defaults=True):
    """One or more further output tokens. If the request asked for `logprobs`, there is one entry per token."""

    id: str
    ids: list[int]
    logprobs: list[PositionLogprobs] | None = None


class Finished(Struct, frozen=True, tag="finished", omit_defaults=True):
    """The end of a request. `message` is set if the reason is `error`."""

    id: str
    reason: Literal["stop", "length", "abort", "error"]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    message: str | None = None


class Rejected(Struct, frozen=True, tag="rejected", omit_defaults=True):
    """The engine did not start the request. Codes: `invalid_request`, `context_length_exceeded`, `overloaded` and
    `draining`; the last two come with `retry_after_s`."""

    id: str
    code: str
    message: str
    retry_after_s: float | None = None


class Stats(Struct, frozen=True, tag="stats"):
    """A snapshot of the engine's counters and gauges by name; see `engine.metrics.EngineMetrics.snapshot`."""

    values: dict[str, Any]


class Error(Struct, frozen=True, tag="error"):
    """The engine cannot go on with this connection and closes it after this frame."""

    code: str
    message: str


EngineMessage = Welcome | Tokens | Finished | Rejected | Stats | Error

# Items and their results: entries of Redis streams -----------------------------------------------------------


class ItemRequest(Struct, frozen=True, omit_defaults=True):
    """An item, ready to compute. The result repeats `item_id` and `epoch`, which identify the attempt."""

    item_id: int
    epoch: int
    job_id: str
    token_ids: list[TokenId]
    sampling: Sampling
    n: Annotated[int, Meta(ge=1)] = 1
    priority: int = 0
    deadline_unix_s: float | None = None


class Choice(Struct, frozen=True, omit_defaults=True):
    """One of the n outputs of an item. If a stop token ended the output, it is the last of `token_ids`."""

    token_ids: list[int]
    reason: Literal["stop", "length"]
    logprobs: list[PositionLogprobs] | None = None


class ItemResult(Struct, frozen=True, omit_defaults=True):
    """The outcome of one `ItemRequest`: its choices, or an error (then `error_code` is set)."""

    item_id: int
    epoch: int
    job_id: str
    engine_id: str
    choices: list[Choice] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error_code: str | None = None
    error_message: str | None = None


# Redis keys that both sides use.
# Items: one stream per model. Fields of an entry: `p` (ItemRequest), `i` (item id), `e` (epoch).
# Results: one stream. Fields of an entry: `p` (ItemResult), `s` (key of the items stream), `x` (id of the entry there
# that the recorder acknowledges).

ENGINE_GROUP = "engines"
RECORD_GROUP = "recorders"
RESULTS_KEY = "bros:results"
GENERATION_KEY = "bros:generation"
CANCEL_CHANNEL = "bros:cancel"


def items_key(model: str) -> str:
    """Key of the stream of items for the engines that serve `model`."""
    return f"bros:items:{model}"


def engine_key(engine_id: str) -> str:
    """Key of an engine's heartbeat: a msgpack map that expires unless the engine renews it."""
    return f"bros:engine:{engine_id}"


encode = msgspec.msgpack.Encoder().encode
decode_client_message = msgspec.msgpack.Decoder(ClientMessage).decode
decode_engine_message = msgspec.msgpack.Decoder(EngineMessage).decode
decode_item_request = msgspec.msgpack.Decoder(ItemRequest).decode
decode_item_result = msgspec.msgpack.Decoder(ItemResult).decode


def frame(message: Struct) -> bytes:
    """Encode one message as a frame: the length prefix and the msgpack body."""
    body = encode(message)
    return LENGTH_PREFIX.pack(len(body)) + body
