"""The check of an input file's first lines before the upload."""

from __future__ import annotations

import io
import itertools
import json

import pytest

from bros_batch.client.bad_input import BadInput
from bros_batch.client.input_check import HEAD_BYTES, check_head, read_head
from bros_batch.client.submission import checked_lines
from bros_batch.documents.lines import LineReader
from bros_batch.documents.readers.open_table import open_table

DOCUMENT = b'{"id": "a", "text": "x"}\n'
REQUEST = json.dumps(
    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}
).encode()


def check(head, prompt, **others):
    """Check the lines against these options of the command line."""
    options = {"prompt": prompt, **others}
    defaults = {name: value for name, value in options.items() if value is not None}
    return check_head(head, defaults, spelled=lambda name: f"--{name.replace('_', '-')}")


@pytest.mark.parametrize(
    ("head", "prompt", "sentence"),
    [
        (b"", "{text}", "The file is empty."),
        (b"\n \r\n", "{text}", "The file is empty."),
        (b"hello\n", "{text}", "Line 1 is not JSON"),
        (b"\xff{}\n", "{text}", "Line 1 is not UTF-8"),
        (b"\n[1, 2]\n", "{text}", "Line 2 is JSON, but not an object"),
        (
            DOCUMENT,
            None,
            "Say with --prompt what is asked about each row; {NAME} stands for the value of a column. The columns of "
            "line 1: id, text.",
        ),
        (
            DOCUMENT,
            "Summarize: {txt}",
            "Line 1: the prompt uses the field 'txt', which the document does not have.",
        ),
        (DOCUMENT, "Summarize: {txt}", "Its fields: id, text."),
        (DOCUMENT, "Summarize it", "contains no {field}"),
        (DOCUMENT, " ", "The --prompt is empty."),
        (REQUEST, "{text}", "with its own parameters; remove --prompt"),
        (b'{"url": "/v1/chat/completions", "body": {}}', None, "without a custom_id"),
    ],
)
def test_an_unusable_file_is_rejected_with_the_line(head, prompt, sentence):
    with pytest.raises(BadInput) as error:
        check(head, prompt)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("head", "prompt"),
    [
        (DOCUMENT, "Summarize: {text}"),
        (DOCUMENT, "As {{json}}: {text}"),
        (b"\xef\xbb\xbf" + DOCUMENT, "{text}"),
        (b"\r\n" + DOCUMENT.replace(b"\n", b"\r\n"), "{text}"),
        (REQUEST, None),
    ],
)
def test_a_usable_file_passes(head, prompt):
    assert check(head, prompt) == []


def test_a_bad_line_before_a_good_one_is_only_a_warning():
    (warning,) = check(b"oops\n" + DOCUMENT, "{text}")
    assert warning.startswith("Line 1 is not JSON")


def test_sampling_options_are_rejected_for_batch_requests():
    with pytest.raises(BadInput, match="remove --max-tokens, --seed"):
        check(REQUEST, None, max_tokens=1, seed=2)


def test_an_endless_line_is_not_held_in_memory():
    piece = b"x" * 1024**2
    head = read_head(itertools.repeat(piece))
    assert HEAD_BYTES <= sum(map(len, head)) <= HEAD_BYTES + len(piece)


def test_a_line_cut_off_by_the_head_is_left_to_the_server():
    cut_off = b'{"text": "' + b"x" * HEAD_BYTES
    assert check(cut_off[:HEAD_BYTES], "Read: {text}") == []
    assert check((b'{"text": "a"}\n' + cut_off)[:HEAD_BYTES], "Read: {text}") == []


@pytest.mark.parametrize(
    "value",
    [
        *(b"1e999", b"[-1e400]", b"1" + b"0" * 400 + b".5", b"9" * 5000, b"NaN", b"Infinity"),
        *(
            rb'"\ud800"',
            rb'"\udc00 \ud800"',
            rb'"\ud83d\ude00"',
            b'"\\\\ud800"',
            b"1e308",
            b"9" * 300,
            b"1e-999",
        ),
    ],
)
def test_the_check_and_ingest_agree_on_bad_values(value):
    line = b'{"text": %b}' % value
    item = LineReader("/v1/chat/completions", None, None).read(line, 2)
    warnings = check(DOCUMENT + line, "{text}")
    assert bool(warnings) == (item.error_code is not None)
    if value[:3] in (b"1e9", b"[-1", b"100", b"999") and warnings:
        assert "out of range" in warnings[0]
        assert "out of range" in item.error_message


def test_a_table_without_rows_is_named_with_what_was_read_of_it():
    with (
        open_table(io.BytesIO(b"No workbook, but a text"), "fake.xlsx") as table,
        pytest.raises(BadInput, match=r"fake.xlsx has no rows: .* as csv, .* \(No workbook, but a text\)"),
    ):
        checked_lines(table, {"prompt": "{text}"}, None, str, print)
