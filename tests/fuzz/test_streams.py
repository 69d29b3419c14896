"""Entries of the Redis streams: valid items and results with changes, and fields that are none."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.wire.item_messages import Choice, ItemRequest, ItemResult, encode
from engine.wire.redis_keys import RESULTS_KEY, items_key
from engine.wire.request_terms import Grammar, Part, PromptLogprobs, Sampling
from tests.fuzz.examples import fuzz
from tests.fuzz.jobs import run_job
from tests.fuzz.strategies import NUMBERS, changed, texts, values
from tests.fuzz.target import Target
from tests.fuzz.test_socket import packed
from tests.services import wait_for

ITEM = ItemRequest(
    1, 1, "batch_none", [5, 6, 7], Sampling(max_tokens=4, seed=1), n=2, priority=1, deadline_unix_s=2e9
)
PARTS = ItemRequest(
    2,
    1,
    "batch_none",
    [5, 6],
    Sampling(max_tokens=1),
    parts=[
        Part([7], Sampling(max_tokens=0, score_token_ids=(5, 6))),
        Part([8], Sampling(max_tokens=0, pooling="mean")),
        Part([9], Sampling(max_tokens=2, prompt_logprobs=2, grammar=Grammar("regex", "[a-z]+"))),
    ],
)
RESULT = ItemResult(1, 1, "batch_none", "engine-0", [Choice([5, 6], "stop")], 3)
READ = ItemResult(
    2,
    1,
    "batch_none",
    "engine-0",
    [
        Choice([], "length", scores=[-1.0, -2.0]),
        Choice([], "length", embedding=b"\0" * 16),
        Choice([5], "length", prompt_logprobs=PromptLogprobs(1, bytes(12)), prompt_tail=[7]),
    ],
    3,
)


def plain(message: msgspec.Struct) -> Any:
    return msgspec.msgpack.decode(encode(message))


numbers = st.one_of(st.sampled_from(NUMBERS).map(str), texts).map(lambda text: text.encode(errors="replace"))
payloads = st.one_of(
    st.sampled_from([ITEM, PARTS, RESULT, READ]).flatmap(lambda message: changed(plain(message))).map(packed),
    values.map(packed),
    st.binary(max_size=60),
)
fields = st.dictionaries(
    st.sampled_from([b"p", b"i", b"e", b"s", b"x", b"\xff"]),
    st.one_of(payloads, numbers),
    min_size=1,
    max_size=5,
)
entries = st.tuples(st.sampled_from([items_key("tiny"), RESULTS_KEY]), fields)


def test_entries_that_nobody_wrote(watched: Target) -> None:
    """Beside a job all whose lines succeed."""

    @fuzz
    @given(sent=st.lists(entries, min_size=1, max_size=10))
    def run(sent: list[tuple[str, dict[bytes, bytes]]]) -> None:
        for key, entry in sent:
            watched.redis.xadd(key, entry)  # type: ignore[arg-type]
        watched.sent["entries"] += len(sent)

    run()
    run_job(watched, [f"Invoice {n}\nTotal: {n}.00 EUR" for n in range(20)])

    def are_gone() -> bool:
        return not watched.redis.xlen(items_key("tiny")) and not watched.redis.xlen(RESULTS_KEY)

    wait_for(are_gone, "streams without the entries that can't be read")
