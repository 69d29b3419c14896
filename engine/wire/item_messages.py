"""Items and their results: entries of Redis streams. `engine.wire.stream_entries` lists the fields of an entry."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from engine.wire.request_terms import LaneName, Part, PositionLogprobs, PromptLogprobs, Sampling, ShortText
from engine.wire.stream_entries import MAX_EPOCH

MAX_PARTS = 2048  # as many inputs as OpenAI takes for embeddings
MAX_MEMO_BYTES = 1024 * 1024
RowNumber = Annotated[int, Meta(ge=0, le=2**63 - 1)]  # what a database can hold


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


encode = msgspec.msgpack.Encoder().encode
decode_item_request = msgspec.msgpack.Decoder(ItemRequest).decode
decode_item_result = msgspec.msgpack.Decoder(ItemResult).decode
