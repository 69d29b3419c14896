"""Incremental detokenization: the pieces make up the whole, and no character is split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from bros_batch.text.detokenize import WindowStream
from bros_batch.text.tokenizer import ModelTokenizer

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
    """A tokenizer like that of Llama 2: words begin with a mark for the space; unknown characters are byte tokens."""
    directory = tmp_path_factory.mktemp("sentencepiece")
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for token in ("\u2581", *"abcdeh", "\u2581a", "\u2581b", "he", "\u2581he"):
        vocabulary[token] = len(vocabulary)
    merges = [("\u2581", "a"), ("\u2581", "b"), ("h", "e"), ("\u2581", "he")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return ModelTokenizer(directory)


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
