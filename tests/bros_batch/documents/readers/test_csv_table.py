"""CSV in the dialects and encodings that programs write."""

from __future__ import annotations

import io

from bros_batch.documents.readers.open_table import open_table
from bros_batch.documents.readers.table import BadRow, Row, Table


def opened(data: bytes, name: str = "table.csv") -> Table:
    return open_table(io.BytesIO(data), name)


def documents(data: bytes, name: str = "table.csv") -> list[dict[str, str]]:
    rows = list(opened(data, name))
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert all(isinstance(row, Row) for row in rows), rows
    return [row.document for row in rows if isinstance(row, Row)]


QUIRKS: dict[str, tuple[bytes, list[dict[str, str]]]] = {
    "byte order mark": (b"\xef\xbb\xbfa,b\n1,\xc3\xa9\n", [{"a": "1", "b": "é"}]),
    "UTF-16 with a mark": ("\ufeffa\tb\r\n1\té\r\n".encode("utf-16-le"), [{"a": "1", "b": "é"}]),
    "UTF-16 without a mark": ("a,b\n1,é\n".encode("utf-16-be"), [{"a": "1", "b": "é"}]),
    "Windows-1252": (b"a;b\r\n1;\x80 5\xe9\r\n", [{"a": "1", "b": "€ 5é"}]),
    "semicolons and decimal commas": (
        b"a;b\n1,5;2,5\n3,5;4\n",
        [{"a": "1,5", "b": "2,5"}, {"a": "3,5", "b": "4"}],
    ),
    "vertical bars": (b"a|b\n1|2\n", [{"a": "1", "b": "2"}]),
    "tabs in a file named csv": (b"a\tb\n1\t2, 3\n", [{"a": "1", "b": "2, 3"}]),
    "line breaks in cells": (b'a,b\r\n1,"x\r\ny\nz"\r\n', [{"a": "1", "b": "x\r\ny\nz"}]),
    "doubled quotation marks": (b'a,b\n1,"say ""hi"", now"\n', [{"a": "1", "b": 'say "hi", now'}]),
    "escaped quotation marks": (
        b'a,b\n1,"say \\"hi\\", now"\n2,x\n',
        [{"a": "1", "b": 'say "hi", now'}, {"a": "2", "b": "x"}],
    ),
    "quotation marks after spaces": (b'a, b\n1, "x, y"\n', [{"a": "1", "b": "x, y"}]),
    "empty lines": (b"\na,b\n\n1,2\n  \n3,4\n\n", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
    "only CR ends lines": (b"a,b\r1,2\r3,4\r", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
    "no line break at the end": (b"a,b\n1,2", [{"a": "1", "b": "2"}]),
    "a delimiter that Excel names": (b"sep=;\na;b\n1;2\n", [{"a": "1", "b": "2"}]),
    "repeated and empty names": (
        b"a,a,,a_2\n1,2,3,4\n",
        [{"a": "1", "a_3": "2", "column_3": "3", "a_2": "4"}],
    ),
    "one column": (b'text\nHello, world; or |\n"a\nb"\n', [{"text": "Hello, world; or |"}, {"text": "a\nb"}]),
    "other line separators are text": (
        "a,b\n1,x\u2028y\x0bz\x85\n".encode(),
        [{"a": "1", "b": "x\u2028y\x0bz\x85"}],
    ),
    "cells as written": (b"a,b\n 007 ,1e5 \n", [{"a": " 007 ", "b": "1e5 "}]),
}


def test_each_quirk_is_read_as_its_author_meant_it() -> None:
    for quirk, (data, expected) in QUIRKS.items():
        assert documents(data) == expected, quirk
        assert documents(data, "table") == expected, f"{quirk}, without a suffix"


def test_a_bad_row_is_named_and_the_others_are_read() -> None:
    data = b'a,b\n1,\xc3\xa9\xc3\xa9\n3\n4,5,6\n7,"x"y\n8,"open\n9,10\n\xff,1\n11,12\n'
    rows = list(opened(data))
    assert [row.document["a"] for row in rows if isinstance(row, Row)] == ["1", "9", "11"]
    assert [row.message for row in rows if isinstance(row, BadRow)] == [
        "Row 2 has 1 cell, but the table has 2 columns.",
        "Row 3 has 3 cells, but the table has 2 columns.",
        "Row 4: text follows the quotation mark that closes a cell; quotation marks within a cell must be doubled.",
        "Row 5: a quotation mark opens a cell, and none closes it.",
        "Row 7, column 'a': the text has bytes that are not text.",
    ]


def test_a_long_text_may_turn_out_to_be_windows_1252() -> None:
    rows = [*(f"{number},plain" for number in range(200_000)), "200000,\xe9"]
    last = list(opened("\n".join(["a,b", *rows]).encode("latin-1")))[-1]
    assert last == Row(200_001, {"a": "200000", "b": "é"})
