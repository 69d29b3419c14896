"""No callback on the event loop of the web process does more than a little work, however large a request or an answer.

Work is counted, not timed: the Python calls of each callback, and the objects that one call of a decoder makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from engine.wire.item_messages import encode
from engine.wire.limits import MAX_PROMPT_LOGPROBS
from engine.wire.protocol import Finished, decode_engine_message
from engine.wire.request_terms import MAX_SCORES, PromptLogprobs
from tests.bros_batch.web.counted_work import CallCounter, counting_web, num_objects
from tests.bros_batch.web.serving import MODEL_NAME, Web

MOST_CALLS = 20_000
MOST_OBJECTS = 2_000
NUM_LIKELIEST = 20
NUM_TOKENS = MAX_PROMPT_LOGPROBS // (1 + NUM_LIKELIEST)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, CallCounter]]:
    with counting_web(tmp_path_factory.mktemp("web")) as served:
        yield served


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {f"p{i}": {"type": "string", "description": "x" * 500} for i in range(3_000)},
        },
    },
}
QUESTION = {"type": "choice", "instructions": "Which?", "choices": [{"value": str(i)} for i in range(10)]}
PROMPT = {"prompt": [5] * NUM_TOKENS, "max_tokens": 0}
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt_logprobs": ("/v1/completions", {**PROMPT, "prompt_logprobs": NUM_LIKELIEST}),
    "echo": ("/v1/completions", {**PROMPT, "echo": True, "logprobs": NUM_LIKELIEST}),
    "embeddings": ("/v1/embeddings", {"input": [[5, i] for i in range(3, 203)]}),
    "decisions": ("/v1/decisions", {"input": "he a b " * 900, "questions": [QUESTION] * 400}),
    "tools": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "he"}],
            "tools": [TOOL],
            "tool_choice": "none",
            "max_tokens": 1,
        },
    ),
    "messages": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "he"}] * 1_000, "max_tokens": 1},
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_callback_does_much(served: tuple[Web, CallCounter], name: str) -> None:
    web, counter = served
    route, body = LARGE[name]
    with web.http() as client:
        before = counter.num_callbacks
        counter.most = 0
        client.get("/counting/on")
        answer = client.post(route, json={"model": MODEL_NAME, **body}, timeout=300)
        client.get("/counting/off")
    assert answer.status_code == 200, answer.text[:500]
    assert counter.num_callbacks > before
    assert counter.most < MOST_CALLS, name


def test_the_largest_message_of_an_engine_has_few_objects() -> None:
    row = bytes(4 + 8 * NUM_LIKELIEST)
    largest = Finished(
        "1",
        "length",
        NUM_TOKENS,
        0,
        scores=[-1.0] * MAX_SCORES,
        prompt_logprobs=PromptLogprobs(NUM_LIKELIEST, row * NUM_TOKENS),
        embedding=bytes(4 * 16_384),
    )
    found = decode_engine_message(encode(largest))
    assert found == largest
    assert num_objects(msgspec.to_builtins(found, builtin_types=(bytes,))) < MOST_OBJECTS
