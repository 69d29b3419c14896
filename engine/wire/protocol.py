"""Messages between an engine and the rest of the system: frames on its socket, and entries of its Redis streams.

A frame is a 4-byte big-endian length followed by that many bytes of msgpack, which encode one tagged message. The
client's first frame is `Hello` and the engine's is `Welcome`. If their versions differ, the engine sends an `Error`
frame and closes the connection.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from engine.wire.stream_entries import MAX_EPOCH

PROTOCOL_VERSION = 6
# A prompt of three million tokens fits, and nobody waits long while one frame is decoded.
MAX_FRAME_BYTES = 16 * 1024 * 1024
LENGTH_PREFIX = struct.Struct(">I")

# The types below limit only what is decoded: the length of texts and lists. Which values an engine can compute with is
# decided by `engine.wire.limits`, so that a request with any other value is rejected by its name and its id.
MAX_ID_CHARS = 128
PROMPT_TAIL_TOKENS = 24  # more than the text of a token depends on, even within a run of byte tokens
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1000
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 1024  # each takes time in every step, which the requests beside it wait for
MAX_GRAMMAR_CHARS = 256 * 1024  # far more than people write; each item carries its grammar through Redis
MAX_SCORES = 1024
MAX_PARTS = 2048  # as many inputs as OpenAI takes for embeddings
MAX_PARTS_AT_ONCE = (
    128  # of a request on the socket: their answer is one frame, embeddings of 16,384 numbers included
)
MAX_MEMO_BYTES = 1024 * 1024

LaneName = Literal["rt", "be"]
GrammarKind = Literal["json_schema", "regex", "lark"]
RowNumber = Annotated[int, Meta(ge=0, le=2**63 - 1)]  # what a database can hold
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

    `engine.wire.limits` says which values are valid.
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

# Items and their results: entries of Redis streams -----------------------------------------------------------


class ItemRequest(Struct, frozen=True, omit_defaults=True):
    """An item, ready to compute. The result repeats `item_id` and `epoch`, which identify the attempt.

    If it has `parts`, each of them is a prompt of its own with its own parameters, and `sampling` is not used. Parts
    share what they begin with, so that it is computed once. There are `n` choices per part, in the order of the parts.
    In the lane "rt" it is scheduled as a chat, by the engine's default SLO. `memo` is for the sender: the result
    repeats it, and the engine does not read it. `owner` is as in `Submit`.
    """

    item_id: RowNumber
    epoch: Annotated[int, Meta(ge=0, le=MAX_EPOCH)]
    job_id: ShortText
    token_ids: list[int]
    sampling: Sampling
    n: int = 1
    priority: int = 0
    deadline_unix_s: float | None = None
    lane: LaneName = "be"
    parts: Annotated[list[Part], Meta(max_length=MAX_PARTS)] = []
    memo: Annotated[bytes, Meta(max_length=MAX_MEMO_BYTES)] = b""
    owner: ShortText = ""


class Choice(Struct, frozen=True, omit_defaults=True):
    """One of the outputs of an item. If a stop token ended the output, it is the last of `token_ids`.

    `scores`, `prompt_logprobs` and `embedding` are those of `Finished`. `prompt_tail` holds the last tokens of the
    choice's own prompt if the item has parts.
    """

    token_ids: list[int]
    reason: Literal["stop", "length"]
    logprobs: list[PositionLogprobs] | None = None
    scores: list[float] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    embedding: bytes | None = None
    prompt_tail: list[int] = []


class ItemResult(Struct, frozen=True, omit_defaults=True):
    """The outcome of one `ItemRequest`: its choices, or an error (then `error_code` is set).

    `prompt_tail` holds the last tokens of the prompt, on which the text of the first output tokens may depend. Token
    counts of an item with parts are the sums over its parts. `memo` is that of the request, and `weights` says what has
    computed it, as in the engine's heartbeat.
    """

    item_id: RowNumber
    epoch: Annotated[int, Meta(ge=0, le=MAX_EPOCH)]
    job_id: str
    engine_id: str
    choices: list[Choice] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_tail: list[int] = []
    error_code: str | None = None
    error_message: str | None = None
    memo: bytes = b""
    weights: str = ""


# Redis keys that both sides use.
# Items: one stream per model. Results: one stream. `engine.wire.stream_entries` lists the fields of an entry.

ENGINE_GROUP = "engines"
RECORD_GROUP = "recorders"
RESULTS_KEY = "bros:results"
GENERATION_KEY = "bros:generation"


# Ids of the items whose outputs are wanted while they are computed, by the Unix time until which they are.
FOLLOWED_KEY = "bros:followed"


def output_key(item_id: int, epoch: int) -> str:
    """Key of the output so far of an attempt at an item that is followed: a `Choice` in msgpack."""
    return f"bros:output:{item_id}:{epoch}"


def items_key(model: str) -> str:
    """Key of the stream of items for the engines that serve `model`."""
    return f"bros:items:{model}"


def engine_key(engine_id: str) -> str:
    """Key of an engine's heartbeat: a msgpack map that expires unless the engine renews it.

    Among its fields are the `model`, the `weights` (engines with the same text give the same answers), and what decides
    how many items are queued for the engine: `max_in_flight`, the number of items that it holds at the same time, and
    `items_per_s`, the number that it has lately ended per second. `jobs` tells what it holds, by job id: the number of
    items, the number of those that have output, and the tokens of these outputs.
    """
    return f"bros:engine:{engine_id}"


encode = msgspec.msgpack.Encoder().encode
decode_client_message = msgspec.msgpack.Decoder(ClientMessage).decode
decode_engine_message = msgspec.msgpack.Decoder(EngineMessage).decode
decode_item_request = msgspec.msgpack.Decoder(ItemRequest).decode
decode_item_result = msgspec.msgpack.Decoder(ItemResult).decode


class FrameTooLong(ValueError):
    """A message does not fit into one frame."""


def frame(message: Struct) -> bytes:
    """Encode one message as a frame: the length prefix and the msgpack body. Raises FrameTooLong, or what
    `engine.wire.decoding.ENCODE_ERRORS` names if the message holds a value that msgpack has no form for."""
    body = encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameTooLong(f"it takes {len(body)} bytes; at most {MAX_FRAME_BYTES} fit into a frame")
    return LENGTH_PREFIX.pack(len(body)) + body
