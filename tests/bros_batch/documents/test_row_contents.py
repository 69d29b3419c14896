"""Guarantee: what a row shows of its answer is one line, so that rows can be sent as lines."""

from __future__ import annotations

import json

import msgspec
import pytest

from bros_batch.documents.form import DOCUMENT
from bros_batch.documents.row_contents import RowContents

SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


def test_an_answer_with_line_breaks_becomes_one_line() -> None:
    contents = RowContents("/v1/chat/completions", DOCUMENT, {"prompt": "{text}", "response_format": SCHEMA})
    text = '{"total": \n\n 1.50,\r\n "note": "two\\nlines"}'
    result = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
    answer, raw_answer = contents.answer('{"text": "x"}', result)
    line = msgspec.json.encode(answer)
    assert raw_answer is None
    assert line == b'{"total":1.50,"note":"two\\nlines"}'


@pytest.mark.parametrize("total", ["2e400", "-1.5e999", "9" * 5000], ids=["float", "negative", "integer"])
def test_an_answer_with_a_number_that_nobody_can_read_stays_text(total: str) -> None:
    contents = RowContents("/v1/chat/completions", DOCUMENT, {"prompt": "{text}", "response_format": SCHEMA})
    text = f'{{"total": {total}}}'
    result = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
    answer, raw_answer = contents.answer('{"text": "x"}', result)
    assert answer is None
    assert msgspec.json.decode(msgspec.json.encode(raw_answer)) == text
