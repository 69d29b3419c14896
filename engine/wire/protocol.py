"""Messages between an engine and its clients, on a socket: frames as `engine.wire.framing` says.

The client's first frame is `Hello` and the engine's is `Welcome`. If their versions differ, the engine sends an `Error`
frame and closes the connection.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from engine.wire.request_terms import (
    LaneName,
    Part,
    PositionLogprobs,
    PromptLogprobs,
    Sampling,
    ShortText,
    Slo,
)

PROTOCOL_VERSION = 6
# Of a request: their answer is one frame, embeddings of 16,384 numbers included.
MAX_PARTS_AT_ONCE = 128

# Client to engine -------------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, tag="hello"):
    """The first frame of a client. `token` is the shared secret that an engine on TCP requires."""

    version: int = PROTOCOL_VERSION
    token: str | None = None


class Submit(Struct, frozen=True, tag="submit", omit_defaults=True):
    """Start a request. The client chooses `id`, which is unique among the open requests of its connection. `owner` is
    whoever the client serves: what has to be prepared for requests, such as grammars, is for all owners in turn."""

    id: ShortText
    token_ids: list[int]
    sampling: Sampling
    lane: LaneName = "rt"
    slo: Slo | None = None
    priority: int = 0
    deadline_unix_s: float | None = None
    owner: ShortText = ""


class SubmitParts(Struct, frozen=True, tag="submit_parts", omit_defaults=True):
    """Start a request of several prompts, none of which generates tokens. All of them begin with `token_ids`, and what
    is asked about them is answered by one `PartsFinished`. The other fields are those of `Submit`, for every part."""

    id: ShortText
    token_ids: list[int]
    parts: Annotated[list[Part], Meta(max_length=MAX_PARTS_AT_ONCE)]
    lane: LaneName = "rt"
    slo: Slo | None = None
    priority: int = 0
    owner: ShortText = ""


class Cancel(Struct, frozen=True, tag="cancel"):
    """Stop a request; the engine sends nothing more for it. An unknown id is not an error: the request has ended."""

    id: ShortText


class StatsQuery(Struct, frozen=True, tag="stats?", omit_defaults=True):
    """Ask for a snapshot of the counters. `with_memory` adds `memory`, a map of the KV memory.

    Queries that arrive while an earlier one waits are answered together, by one `Stats` message.
    """

    with_memory: bool = False


class PulseQuery(Struct, frozen=True, tag="pulse?"):
    """Ask for one `Pulse` message, which the engine sends even if its main loop is stuck."""


ClientMessage = Hello | Submit | SubmitParts | Cancel | StatsQuery | PulseQuery

# Engine to client -------------------------------------------------------------------------------------------


class Welcome(Struct, frozen=True, tag="welcome"):
    """The first frame of the engine: what it serves, and the limits by which it judges requests.

    `max_model_len` is the number of tokens that the prompt and the output of a request may have together. `vocab_size`
    is the number of logits, which may be more than the tokens that the tokenizer knows. `hidden_size` is the length of
    an embedding; 0 if the model's hidden states cannot be read.
    """

    version: int
    engine_id: str
    model: str
    max_model_len: int
    vocab_size: int
    hidden_size: int = 0


class Tokens(Struct, frozen=True, tag="tokens", omit_defaults=True):
    """One or more further output tokens. If the request asked for `logprobs`, there is one entry per token."""

    id: str
    ids: list[int]
    logprobs: list[PositionLogprobs] | None = None


class Finished(Struct, frozen=True, tag="finished", omit_defaults=True):
    """The end of a request. `message` is set if the reason is `error`.

    `scores` are the log-probabilities of `score_token_ids`, in their order. `prompt_logprobs` has one entry per token
    of the prompt from the second on. `embedding` is the pooled hidden state, as little-endian float32.
    """

    id: str
    reason: Literal["stop", "length", "abort", "error"]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    message: str | None = None
    scores: list[float] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    embedding: bytes | None = None


class PartEnd(Struct, frozen=True, array_like=True, omit_defaults=True):
    """What was asked about one part; the fields are those of `Finished`."""

    cached_tokens: int
    scores: list[float] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    embedding: bytes | None = None


class PartsFinished(Struct, frozen=True, tag="parts_finished", omit_defaults=True):
    """The end of all parts of a request, in their order. If one of them fails, the others end too, and there is a
    `Finished` instead."""

    id: str
    parts: list[PartEnd]


class Rejected(Struct, frozen=True, tag="rejected", omit_defaults=True):
    """The engine did not start the request. Codes: `invalid_request` and `context_length_exceeded`, whose `param` names
    the field at fault, and `overloaded` and `draining`, which come with `retry_after_s`."""

    id: str
    code: str
    message: str
    retry_after_s: float | None = None
    param: str | None = None


class Stats(Struct, frozen=True, tag="stats"):
    """A snapshot of the engine's counters and gauges by name; see `engine.metrics.EngineMetrics.snapshot`.

    It answers the oldest `num_queries` queries that have no answer yet.
    """

    values: dict[str, Any]
    num_queries: int = 1


class Pulse(Struct, frozen=True, tag="pulse"):
    """Whether the engine's main loop makes progress. `late_s`: time without any, beyond what was predicted."""

    num_steps: int
    late_s: float
    is_stuck: bool


class Error(Struct, frozen=True, tag="error"):
    """The engine cannot go on with this connection and closes it after this frame."""

    code: str
    message: str


EngineMessage = Welcome | Tokens | Finished | PartsFinished | Rejected | Stats | Pulse | Error
decode_client_message = msgspec.msgpack.Decoder(ClientMessage).decode
decode_engine_message = msgspec.msgpack.Decoder(EngineMessage).decode
