"""Tables as files: what is written is read again, by the readers and by other programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from python_calamine import CalamineWorkbook

from bros_batch.documents.writers.excel_writer import sheet_name
from bros_batch.documents.writers.table_limits import UnwritableTable, check_num_rows
from bros_batch.documents.writers.write_table import format_of, write_table

TEXTS = [
    "", " x ", "0012", "1e5", "=1+1", "@SUM(A1)", "http://example.com", 'a "quoted", cell', "two\nlines",
    "cr\rhere", "crlf\r\nhere", "tab\there", "Zürich Łódź 北京 🎉", "_x0041_", "\x01\x1f", "'", "TRUE", "null",
    "\ufeffmark",
]  # fmt: skip


def written(tmp_path: Path, kind: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    path = tmp_path / f"out.{kind}"
    with path.open("w+b") as file:
        assert write_table(kind, file, columns, lambda: iter(rows)) == len(rows)
    return path


def test_the_suffix_says_the_format() -> None:
    found = {
        name: format_of(name) for name in ("a.CSV", "a.tsv", "b/c.jsonl", "a.parquet", "a.xlsx", "a.pdf", "a")
    }
    assert list(found.values()) == ["csv", "tsv", "jsonl", "parquet", "xlsx", None, None]


@pytest.mark.parametrize(("kind", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_cells_of_csv_are_exactly_the_texts(tmp_path: Path, kind: str, delimiter: str) -> None:
    rows = [[text, None, 2**60, 1.5, True, {"a": [1, "é"]}] for text in TEXTS]
    path = written(tmp_path, kind, ["té,xt", "n", "i", "f", "b", "o"], rows)
    data = path.read_bytes()
    assert data.startswith(b"\xef\xbb\xbf"), "without it, Excel does not read UTF-8"
    header, *read = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter)
    assert header == ["té,xt", "n", "i", "f", "b", "o"]
    assert read == [[text, "", str(2**60), "1.5", "true", '{"a":[1,"é"]}'] for text in TEXTS]


def test_json_lines_keep_every_type(tmp_path: Path) -> None:
    rows = [[1, 2.5, None, [1, {"é": 2}]], ["x", True, 2**70 // 2**8, ""]]
    path = written(tmp_path, "jsonl", list("abcd"), rows)
    assert [list(json.loads(line).values()) for line in path.read_text().splitlines()] == rows


def test_cells_of_excel_keep_text_numbers_and_truth_values(tmp_path: Path) -> None:
    numbers = [0.1 + 0.2, 1e300, 5e-324, -1.5, 3, 2**53, True, False]
    path = written(
        tmp_path, "xlsx", ["a", "=b"], [*([text, text] for text in TEXTS), *([n, n] for n in numbers)]
    )
    sheet = CalamineWorkbook.from_path(path).get_sheet_by_index(0)
    header, *rows = sheet.to_python(skip_empty_area=False)
    assert header == ["a", "=b"]
    assert [row[0] for row in rows[: len(TEXTS)]] == TEXTS
    read = [row[0] for row in rows[len(TEXTS) :]]
    assert read == numbers and [type(each) for each in read[-2:]] == [bool, bool]
    large = written(tmp_path, "xlsx", ["a"], [[2**53 + 1], [[1, 2]], [None]])
    rows = CalamineWorkbook.from_path(large).get_sheet_by_index(0).to_python()
    assert rows[1:3] == [["9007199254740993"], ["[1,2]"]], "digits are not lost"


def test_a_sheet_has_a_title_that_excel_accepts(tmp_path: Path) -> None:
    names = {
        "invoices 2026": "invoices 2026",
        "": "answers",
        " '' ": "answers",
        "History": "answers",
        "it's [a/b]: c?*\\": "it's  a b   c",
        "x" * 40: "x" * 31,
        "🎉" * 20: "🎉" * 15,
        "tab\there\ud800": "tab here",
    }
    assert {title: sheet_name(title) for title in names} == names
    path = tmp_path / "out.xlsx"
    with path.open("w+b") as file:
        write_table("xlsx", file, ["a"], lambda: iter([[1]]), title="März: 1/2")
    assert CalamineWorkbook.from_path(path).sheet_names == ["März  1 2"]


def test_what_excel_cannot_hold_is_said_in_one_sentence(tmp_path: Path) -> None:
    def refused(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
        with pytest.raises(UnwritableTable) as caught:
            written(tmp_path, "xlsx", columns, rows)
        return str(caught.value)

    assert "Row 2, column 'text' has 32,768 characters" in refused(
        ["id", "text"], [[1, "x"], [2, "x" * 32768]]
    )
    assert "16,384 columns, and these are 16,385" in refused([str(n) for n in range(16385)], [])
    check_num_rows("xlsx", 1_048_575)
    check_num_rows("csv", 10**9)
    with pytest.raises(UnwritableTable, match=r"1,048,576; write to a \.csv"):
        check_num_rows("xlsx", 1_048_576)
    written(tmp_path, "xlsx", ["text"], [["x" * 32767]])


def test_columns_of_parquet_have_the_type_of_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bros_batch.documents.writers import parquet_writer

    monkeypatch.setattr(parquet_writer, "BATCH_ROWS", 2)
    monkeypatch.setattr(parquet_writer, "GROUP_ROWS", 3)
    columns: dict[str, tuple[list[Any], Any]] = {
        "text": (["a", None, "=1", "\x00b", ""], pyarrow.string()),
        "whole": ([1, None, -(2**62), 4, 5], pyarrow.int64()),
        "number": ([1, 2, 2.5, None, 4], pyarrow.float64()),
        "late": ([None, None, None, None, True], pyarrow.bool_()),
        "nothing": ([None] * 5, pyarrow.string()),
        "list": ([["a"], [], None, ["b", "c"], [None]], pyarrow.list_(pyarrow.string())),
        "object": ([{"x": 1}, None, {"y": "z"}, {"x": 2}, {}], None),
    }
    rows = list(zip(*(values for values, _ in columns.values()), strict=True))
    path = written(tmp_path, "parquet", list(columns), rows)
    file = pyarrow.parquet.ParquetFile(path)
    assert file.num_row_groups == 2
    for name, (values, kind) in columns.items():
        column = file.read().column(name)
        if kind is not None:
            assert column.type == kind, name
            assert column.to_pylist() == values
    assert file.read().column("object").to_pylist()[2] == {"x": None, "y": "z"}


def test_parquet_columns_without_a_type_in_common_are_text(tmp_path: Path) -> None:
    columns: dict[str, tuple[list[Any], list[Any]]] = {
        "mixed": ([1, "a", None], ["1", "a", None]),
        "truth": ([True, 1, 0.5], ["true", "1", "0.5"]),
        "large": ([2**64, 1, 2], [str(2**64), "1", "2"]),
        "empty": ([{}, {}, None], ["{}", "{}", None]),
        "lists": ([[1], ["a"], [[2]]], ["[1]", '["a"]', "[[2]]"]),
    }
    rows = list(zip(*(values for values, _ in columns.values()), strict=True))
    read = pyarrow.parquet.read_table(written(tmp_path, "parquet", list(columns), rows))
    assert {name: read.column(name).to_pylist() for name in columns} == {
        name: expected for name, (_, expected) in columns.items()
    }
    empty = pyarrow.parquet.read_table(written(tmp_path, "parquet", ["a", "_error"], []))
    assert (empty.num_rows, empty.column_names) == (0, ["a", "_error"])
