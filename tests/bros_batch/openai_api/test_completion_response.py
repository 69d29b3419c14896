"""Response bodies of whole outputs."""

from __future__ import annotations

from dataclasses import replace

from bros_batch.openai_api.completion_response import (
    ResponseHead,
    response_body,
    text_logprobs,
    usage_object,
)
from bros_batch.openai_api.endpoint import Outcome
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, COMPLETIONS
from bros_batch.openai_api.registry import endpoint_at
from bros_batch.text.message_form import finished_choice
from bros_batch.text.output_decoder import TokenLogprob
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.item_messages import Choice
from engine.wire.request_terms import Sampling
from tests.bros_batch.openai_api.factories import chat, served_model

END = 2


def test_bodies(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode_prompt("hi")
    choices = [Choice(ids, "length"), Choice([*ids, END], "stop")]
    outcome = Outcome(choices, [[], []], prompt_tokens=3, cached_tokens=2)
    request = chat(n=2, max_tokens=100)
    sampling = Sampling(max_tokens=100)
    model = served_model(tokenizer)
    head = ResponseHead(CHAT_COMPLETIONS, request_id="req_1", model="m", created=5)
    body = endpoint_at(CHAT_COMPLETIONS).response(head, request, model, outcome)
    finished = [finished_choice(tokenizer, index, choice, sampling) for index, choice in enumerate(choices)]
    assert body == response_body(head, finished, usage_object(3, 2 * len(ids) + 1, 2))
    assert (body["object"], body["id"]) == ("chat.completion", "chatcmpl-1")
    assert (body["model"], body["created"]) == ("m", 5)
    assert [choice["message"]["content"] for choice in body["choices"]] == ["hi", "hi"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "stop"]
    body = response_body(replace(head, endpoint=COMPLETIONS), finished, usage_object(3, 4))
    assert (body["object"], body["id"], body["choices"][1]["text"]) == ("text_completion", "cmpl-1", "hi")
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_logprobs_of_tokens_without_text_are_all_kept() -> None:
    bytes_of_emoji = [bytes([0x80 + number]) for number in range(20)]
    top = tuple((token, -float(rank)) for rank, token in enumerate(bytes_of_emoji, 1))
    found = text_logprobs([TokenLogprob(b"\xf0", -9.0, top, 0), TokenLogprob(b"\xf0\x9f", -9.5, top, 0)])
    assert found["tokens"] == ["bytes:\\xf0", "bytes:\\xf0\\x9f"]
    assert [len(each) for each in found["top_logprobs"]] == [21, 21]
    assert found["top_logprobs"][0]["bytes:\\xf0"] == -9.0
    assert found["top_logprobs"][0]["bytes:\\x80"] == -1.0


def test_of_tokens_with_the_same_text_the_drawn_and_the_likeliest_are_kept() -> None:
    """A SentencePiece token for a byte and the token of its character look alike."""
    top = ((b"b", -0.5), (b"a", -1.0), (b"b", -2.0), (b"a", -4.0))
    (found,) = text_logprobs([TokenLogprob(b"a", -4.0, top, 0)])["top_logprobs"]
    assert found == {"a": -4.0, "b": -0.5}
