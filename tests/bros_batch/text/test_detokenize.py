"""Incremental detokenization: the pieces make up the whole, and no character is split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bros_batch.text.detokenize import WindowStream
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.request_terms import PROMPT_TAIL_TOKENS
from tests.factories_text import make_sentencepiece_model

TOKENS = st.lists(st.integers(0, 399), max_size=60)
SIZES = st.lists(st.integers(1, 5), min_size=60, max_size=60)


def split(ids: list[int], sizes: list[int]) -> list[list[int]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(ids[start : start + size])
        start += size
    return parts


@given(ids=TOKENS, sizes=SIZES)
@settings(max_examples=200, deadline=None)
def test_pieces_make_the_whole(tokenizer: ModelTokenizer, ids: list[int], sizes: list[int]) -> None:
    for stream in (tokenizer.stream(), WindowStream(tokenizer.decode)):
        pieces = [stream.push(part) for part in split(ids, sizes)]
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


@given(content=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_character_is_never_split(tokenizer: ModelTokenizer, content: str) -> None:
    if any(0xD800 <= ord(character) < 0xE000 for character in content):
        return
    stream = tokenizer.stream()
    pieces = [stream.push([token_id]) for token_id in tokenizer.encode_prompt(content)]
    assert "".join(pieces) == content
    assert stream.finish() == ""


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(make_sentencepiece_model(tmp_path_factory.mktemp("sentencepiece")))


@given(content=st.text("abhe é🙂", max_size=30), ids=st.lists(st.integers(0, 260), max_size=20), sizes=SIZES)
@settings(max_examples=200, deadline=None)
def test_pieces_make_the_whole_with_marked_spaces(
    sentencepiece: ModelTokenizer, content: str, ids: list[int], sizes: list[int]
) -> None:
    token_ids = sentencepiece.encode_prompt(content)
    stream = sentencepiece.stream()
    pieces = [stream.push(part) for part in split(token_ids, sizes)]
    assert "".join(pieces) + stream.finish() == sentencepiece.decode(token_ids) == content
    assert b"".join(map(sentencepiece.bytes_of, token_ids)).decode().removeprefix(" ") == content


def test_a_long_run_of_invalid_bytes_is_not_held_back(tokenizer: ModelTokenizer) -> None:
    broken = tokenizer.encode_prompt("é")[:1] * 1000
    stream = WindowStream(tokenizer.decode)
    shown = "".join(stream.push([token_id]) for token_id in broken)
    assert len(shown) > 900
    assert shown + stream.finish() == tokenizer.decode(broken)


TOKENS_OF_TEXT = st.lists(st.integers(0, 275) | st.text("abhe é🙂", min_size=1, max_size=4), max_size=20)


def ids_of(model: ModelTokenizer, parts: list[int | str], is_byte_level: bool) -> list[int]:
    """Token ids as drawn, and those of texts. Where single bytes are tokens of their own, they occur within characters
    only: the decoder shows a whole run of them differently if one of them is invalid."""
    ids: list[int] = []
    for part in parts:
        if isinstance(part, str):
            ids += model.encode_prompt(part)
        elif is_byte_level or part < 3 or part > 258:
            ids.append(part)
    return ids


@given(before=TOKENS_OF_TEXT, after=TOKENS_OF_TEXT, sizes=SIZES)
@settings(max_examples=400, deadline=None)
def test_an_output_is_what_it_adds_to_its_prompt(
    tokenizer: ModelTokenizer,
    sentencepiece: ModelTokenizer,
    before: list[int | str],
    after: list[int | str],
    sizes: list[int],
) -> None:
    for each in (sentencepiece, tokenizer):
        prompt, ids = (ids_of(each, parts, each is tokenizer) for parts in (before, after))
        if each.decode(prompt).endswith("\ufffd"):
            continue  # the output may complete a character of the prompt: see below
        stream = each.stream(prompt[-PROMPT_TAIL_TOKENS:])
        pieces = [stream.push(part) for part in split(ids, [*sizes, 1000])]
        assert each.decode(prompt) + "".join(pieces) + stream.finish() == each.decode([*prompt, *ids])


def test_a_first_word_keeps_its_space(sentencepiece: ModelTokenizer) -> None:
    prompt, answer = sentencepiece.encode_prompt("b a b a b a b a b he"), sentencepiece.encode_prompt("a bad")
    assert sentencepiece.stream(prompt[-PROMPT_TAIL_TOKENS:]).push(answer) == " a bad"
    assert sentencepiece.stream().push(answer) == "a bad"
    assert sentencepiece.stream([1]).push(answer) == "a bad"
    assert sentencepiece.stream([*prompt[-7:], 2]).push(answer) == " a bad", "special tokens have no text"


def test_an_output_completes_a_character_of_its_prompt(
    tokenizer: ModelTokenizer, sentencepiece: ModelTokenizer
) -> None:
    for each in (tokenizer, sentencepiece):
        ids = each.encode_prompt("b \U0001f642 a")
        for cut in range(1, len(ids)):
            stream = each.stream(ids[max(0, cut - PROMPT_TAIL_TOKENS) : cut])
            before = each.decode(ids[:cut]).rstrip("\ufffd")
            assert before + stream.push(ids[cut:]) + stream.finish() == "b \U0001f642 a"
