"""The lines of an input file, as ingest reads them and as limits count them."""

from __future__ import annotations

import io

from bros_batch.documents.input_lines import input_lines, num_lines

LINES = b'\xef\xbb\xbf{"a": 1}\r\n\n \t\r\n{"b": 2}\rsame line\n' + b"x" * 50 + b"\n{}"


def test_lines_end_at_newlines_only_and_their_sizes_add_up() -> None:
    found = list(input_lines(io.BufferedReader(io.BytesIO(LINES)), 20))
    assert [line for line, _ in found] == [b'{"a": 1}', b"", b"", b'{"b": 2}\rsame line', None, b"{}"]
    assert sum(size for _, size in found) == len(LINES)
    rest = io.BufferedReader(io.BytesIO(LINES))
    rest.seek(found[0][1])
    assert list(input_lines(rest, 20)) == found[1:]


def test_a_count_has_those_lines_that_become_rows() -> None:
    assert num_lines(io.BufferedReader(io.BytesIO(LINES)), 20, 100) == 4
    assert num_lines(io.BufferedReader(io.BytesIO(LINES)), 20, 2) == 2
    assert num_lines(io.BufferedReader(io.BytesIO(b"\n\r\n")), 20, 9) == 0
