"""The tokenizer of the reference model: the web server can load it, and every token can be streamed immediately."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reference_model import write_tokenizer
from benchmarks.serving.load import END_TEXT_ID, FIRST_TEXT_ID
from bros_batch.text.tokenizer import ModelTokenizer


def test_prompt_and_output_tokens_are_ascii_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    text = ModelTokenizer(tmp_path)
    pieces = [text.bytes_of(token_id) for token_id in range(FIRST_TEXT_ID, END_TEXT_ID)]
    assert all(piece.isascii() and len(piece) >= 2 for piece in pieces)
    assert len(set(pieces)) == len(pieces)


def test_text_survives_a_round_trip(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    text = ModelTokenizer(tmp_path)
    written = "What is the total? Total: 12.50 EUR, fällig am Montag 🙂"
    assert text.decode(text.encode_prompt(written)) == written
    chat = text.encode_chat([{"role": "user", "content": written}])
    assert chat[0] == 1 and len(chat) > len(text.encode_prompt(written))
