"""Text to tokens and back: like transformers does it, and piece by piece as well as at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from bros_batch.openai_api.completion_requests import RequestError, parse_body
from bros_batch.text.detokenize import StopCutter, WindowStream
from bros_batch.text.tokenizer import ModelText, load, render_template, template_fields
from tests.factories_text import make_text_model

TOKENS = st.lists(st.integers(0, 399), max_size=60)
CUTS = st.lists(st.integers(1, 5), min_size=60, max_size=60)


def chunks(ids: list[int], sizes: list[int]) -> list[list[int]]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(ids[start : start + size])
        start += size
    return pieces


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    return load(str(make_text_model(tmp_path_factory.mktemp("model"))))


def test_like_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = make_text_model(tmp_path / "model")
    ours, theirs = ModelText(directory), AutoTokenizer.from_pretrained(directory)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Größe? 数据 🙂\n\n  <|im_end|> {{ x }}"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "again"},
    ]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(messages) == expected
    assert ours.encode_prompt("Plain 数据 text\n") == theirs("Plain 数据 text\n")["input_ids"]
    assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
    assert ours.eos_token_ids == {theirs.eos_token_id}
    assert ours.max_model_len == 2048


@given(ids=TOKENS, sizes=CUTS)
@settings(max_examples=200, deadline=None)
def test_pieces_make_the_whole(text: ModelText, ids: list[int], sizes: list[int]) -> None:
    for stream in (text.stream(), WindowStream(text.decode)):
        pieces = [stream.push(chunk) for chunk in chunks(ids, sizes)]
        assert "".join(pieces) + stream.finish() == text.decode(ids)


@given(content=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_character_is_never_split(text: ModelText, content: str) -> None:
    if any(0xD800 <= ord(character) < 0xE000 for character in content):
        return
    stream = text.stream()
    pieces = [stream.push([token_id]) for token_id in text.encode_prompt(content)]
    assert "".join(pieces) == content
    assert stream.finish() == ""


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    """A tokenizer like Llama 2's: words begin with a mark for the space, unknown characters are byte tokens."""
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
    return ModelText(directory)


@given(content=st.text("abhe é🙂", max_size=30), ids=st.lists(st.integers(0, 260), max_size=20), sizes=CUTS)
@settings(max_examples=200, deadline=None)
def test_pieces_make_the_whole_with_marked_spaces(
    sentencepiece: ModelText, content: str, ids: list[int], sizes: list[int]
) -> None:
    token_ids = sentencepiece.encode_prompt(content)
    stream = sentencepiece.stream()
    pieces = [stream.push(chunk) for chunk in chunks(token_ids, sizes)]
    assert "".join(pieces) + stream.finish() == sentencepiece.decode(token_ids) == content
    assert b"".join(map(sentencepiece.bytes_of, token_ids)).decode().removeprefix(" ") == content


def test_an_endless_run_of_broken_bytes_is_let_go(text: ModelText) -> None:
    broken = text.encode_prompt("é")[:1] * 1000
    stream = WindowStream(text.decode)
    shown = "".join(stream.push([token_id]) for token_id in broken)
    assert len(shown) > 900
    assert shown + stream.finish() == text.decode(broken)


@given(
    content=st.text("abc", max_size=40),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    sizes=CUTS,
)
@settings(max_examples=300, deadline=None)
def test_cuts_at_the_first_stop_string(content: str, stops: list[str], sizes: list[int]) -> None:
    cutter, shown, start = StopCutter(stops), "", 0
    for size in sizes:
        shown += cutter.push(content[start : start + size])
        start += size
        # What was shown can still be followed by the rest: no beginning of a stop string was let out too soon.
        assert content.startswith(shown)
    shown += cutter.finish()
    # A match counts as soon as its end is there; of those ending in one piece, the one that begins first.
    first_end = min((content.find(stop) + len(stop) for stop in stops if stop in content), default=None)
    assert cutter.stopped == (first_end is not None)
    if first_end is None:
        assert shown == content
    else:
        assert len(shown) < first_end
        assert any(content[len(shown) :].startswith(stop) for stop in stops)


def test_a_stop_string_counts_only_where_armed() -> None:
    cutter = StopCutter(["END"])
    assert cutter.push("xEND", armed=False) == "xEND"
    assert cutter.push("yE", armed=False) == "y"
    assert cutter.push("ND!", armed=True) == ""
    assert cutter.stopped


def test_requests_become_prompts(text: ModelText) -> None:
    one = parse_body("/v1/completions", '{"model": "m", "prompt": "a"}')
    several = parse_body("/v1/completions", '{"model": "m", "prompt": ["a", "b c"]}')
    ids = parse_body("/v1/completions", '{"model": "m", "prompt": [5, 6]}')
    lists = parse_body("/v1/completions", '{"model": "m", "prompt": [[5], [6, 7]]}')
    assert text.encode_request(one) == [text.encode_prompt("a")]
    assert text.encode_request(several) == [text.encode_prompt("a"), text.encode_prompt("b c")]
    assert (text.encode_request(ids), text.encode_request(lists)) == ([[5, 6]], [[5], [6, 7]])


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    directory = make_text_model(tmp_path / "model")
    (directory / "tokenizer_config.json").unlink()
    with pytest.raises(RequestError, match="no chat template"):
        ModelText(directory).encode_chat([{"role": "user", "content": "hi"}])


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    directory = make_text_model(tmp_path / "model")
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}x"
    (directory / "chat_template.jinja").write_text(source)
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        ModelText(directory).encode_chat([{"role": "system", "content": "hi"}])
    assert caught.value.param == "messages"


def test_a_template_reaches_no_python(tmp_path: Path) -> None:
    directory = make_text_model(tmp_path / "model")
    (directory / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(RequestError):
        ModelText(directory).encode_chat([{"role": "user", "content": "hi"}])


def test_documents_fill_a_template() -> None:
    document = {"text": "T {title}", "title": None, "my list": [1, "ä"], "n": 3}
    template = 'Sum {text}|{ title }|{my list}|{n}|{{text}}|{"json": 1}|{}'
    assert render_template(template, document, 1) == 'Sum T {title}||[1, "ä"]|3|{text}|{"json": 1}|{}'
    assert template_fields(template) == ["text", "title", "my list", "n"]


def test_a_missing_field_is_named() -> None:
    with pytest.raises(RequestError, match=r"Line 7.*'title'.*text") as caught:
        render_template("{text} {title}", {"text": "x"}, 7)
    assert caught.value.param == "title"
