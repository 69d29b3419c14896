"""Decoding of outputs: streamed and whole, with stop strings, and with log-probabilities that match the text."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bros_batch.text.message_form import finished_choice
from bros_batch.text.output_decoder import OutputDecoder, StopReason
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.item_messages import Choice
from engine.wire.request_terms import PositionLogprobs, Sampling

END = 2


def logprobs_of(ids: list[int]) -> list[PositionLogprobs]:
    return [PositionLogprobs(-float(token_id), ((token_id, -1.0), (5, -2.0))) for token_id in ids]


def sampling(**fields: Any) -> Sampling:
    return Sampling(max_tokens=100, **fields)


def text_of(tokenizer: ModelTokenizer, ids: list[int], sampling: Sampling, reason: StopReason) -> str:
    return finished_choice(tokenizer, 0, Choice(ids, reason), sampling).text


def test_the_end_token_has_no_text(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode_prompt("hello dog")
    assert text_of(tokenizer, [*ids, END], sampling(), "stop") == "hello dog"
    assert text_of(tokenizer, ids, sampling(), "length") == "hello dog"
    # A stop token that is not special would have text; it has none where it ended the output, and has where not.
    last = ids[-1]
    shown = tokenizer.decode(ids[:-1])
    assert text_of(tokenizer, ids, sampling(stop_token_ids=(last,)), "stop") == shown
    assert text_of(tokenizer, ids, sampling(stop_token_ids=(last,)), "length") == "hello dog"
    assert (
        text_of(tokenizer, [last, *ids], sampling(stop_token_ids=(last,)), "stop")
        == tokenizer.decode([last]) + shown
    )


def test_the_text_ends_before_a_stop_string(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode_prompt("one two three two")
    choice = finished_choice(tokenizer, 0, Choice(ids, "length"), sampling(stop=(" two",)))
    assert (choice.text, choice.finish_reason) == ("one", "stop")
    choice = finished_choice(tokenizer, 0, Choice(ids, "stop"), sampling(stop=("absent",)))
    assert (choice.text, choice.finish_reason) == ("one two three two", "stop")


def test_stop_strings_within_min_tokens_do_not_count(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode_prompt("a.b.c")
    first = len(tokenizer.encode_prompt("a."))
    assert text_of(tokenizer, ids, sampling(stop=(".",)), "length") == "a"
    assert text_of(tokenizer, ids, sampling(stop=(".",), min_tokens=first), "length") == "a.b"


def test_logprobs_cover_the_text(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode_prompt("Größe 🙂 END of it")
    choice = Choice([*ids, END], "stop", logprobs_of([*ids, END]))
    whole = finished_choice(tokenizer, 0, choice, sampling(logprobs=2))
    assert whole.logprobs is not None
    assert b"".join(each.token for each in whole.logprobs).decode() == whole.text == "Größe 🙂 END of it"
    assert [each.logprob for each in whole.logprobs] == [-float(token_id) for token_id in ids]
    assert whole.logprobs[0].top == ((tokenizer.bytes_of(ids[0]), -1.0), (tokenizer.bytes_of(5), -2.0))
    cut = finished_choice(tokenizer, 0, choice, sampling(logprobs=2, stop=("END",)))
    assert cut.logprobs is not None
    assert cut.text == "Größe 🙂 "
    assert b"".join(each.token for each in cut.logprobs).decode().startswith(cut.text.rstrip())
    assert all(each.offset < len(cut.text) for each in cut.logprobs)


@given(
    ids=st.lists(st.integers(0, 399), max_size=50),
    sizes=st.lists(st.integers(1, 4), min_size=50, max_size=50),
    stops=st.lists(st.sampled_from(["e", "th", " the", "12", "ä"]), max_size=2, unique=True),
    min_tokens=st.integers(0, 5),
    with_logprobs=st.booleans(),
    reason=st.sampled_from(["stop", "length"]),
)
@settings(max_examples=300, deadline=None)
def test_the_streamed_pieces_make_up_the_whole(
    tokenizer: ModelTokenizer,
    ids: list[int],
    sizes: list[int],
    stops: list[str],
    min_tokens: int,
    with_logprobs: bool,
    reason: Any,
) -> None:
    asked = sampling(stop=tuple(stops), min_tokens=min_tokens, logprobs=1 if with_logprobs else None)
    logprobs = logprobs_of(ids) if with_logprobs else None
    # One token at a time is how an engine gives them: a stop string is seen at the first token that completes it.
    by_token, start = OutputDecoder(tokenizer, asked), 0
    pieces = [by_token.push([token_id], logprobs and [logprobs[i]]) for i, token_id in enumerate(ids)]
    pieces.append(by_token.finish(reason))
    in_parts = OutputDecoder(tokenizer, sampling(stop=(), logprobs=asked.logprobs))
    for size in sizes:
        part = slice(start, start + size)
        in_parts.push(ids[part], logprobs and logprobs[part])
        start += size
    shown = "".join(piece.text for piece in pieces)
    everything = text_of(tokenizer, ids, sampling(), reason)
    assert everything.startswith(shown)
    if not by_token.stopped:
        assert shown == everything
    given_logprobs = [each for piece in pieces for each in piece.logprobs]
    if with_logprobs and not by_token.stopped:
        ends = reason == "stop" and bool(ids) and ids[-1] == END
        assert len(given_logprobs) == len(ids) - ends
    assert given_logprobs == sorted(given_logprobs, key=lambda each: each.offset)
