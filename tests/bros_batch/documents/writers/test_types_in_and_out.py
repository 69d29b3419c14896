"""Dates, times and exact numbers come out of a table as they went in, and answers have the types of their schema."""

from __future__ import annotations

import datetime
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import xlsxwriter
from python_calamine import CalamineWorkbook

from bros_batch.documents.answer_columns import AnswerColumns, KnownColumns
from bros_batch.documents.column_types import answer_types
from bros_batch.documents.readers.open_table import open_table
from bros_batch.documents.readers.table import Row
from bros_batch.documents.writers.write_table import write_table

DAY = datetime.date(2024, 2, 29)
MOMENT = datetime.datetime(2024, 2, 29, 13, 14, 15, 678900)
MIDNIGHT = datetime.datetime(2024, 3, 1)
TIME = datetime.time(23, 59, 1)
SPAN = datetime.timedelta(days=1, hours=2, minutes=3, seconds=4)
ARROW = {
    "date": pyarrow.array([DAY, None], pyarrow.date32()),
    "date64": pyarrow.array([None, DAY], pyarrow.date64()),
    "moment": pyarrow.array([MOMENT, MIDNIGHT], pyarrow.timestamp("us")),
    "zone": pyarrow.array([MOMENT, None], pyarrow.timestamp("ns", "Europe/Berlin")),
    "seconds": pyarrow.array([MIDNIGHT, None], pyarrow.timestamp("s")),
    "time": pyarrow.array([TIME, None], pyarrow.time64("ns")),
    "short time": pyarrow.array([TIME, None], pyarrow.time32("s")),
    "span": pyarrow.array([SPAN, -SPAN], pyarrow.duration("ms")),
    "exact": pyarrow.array([Decimal("12.50"), Decimal("-0.10")], pyarrow.decimal128(12, 2)),
    "bool": pyarrow.array([True, None]),
    "small": pyarrow.array([1, -2], pyarrow.int8()),
    "large": pyarrow.array([2**64 - 1, None], pyarrow.uint64()),
    "float32": pyarrow.array([0.1, None], pyarrow.float32()),
    "whole floats": pyarrow.array([1.0, 2.0], pyarrow.float64()),
    "nothing yet": pyarrow.array([None, None], pyarrow.int64()),
    "text": pyarrow.array(["2024-02-29", None], pyarrow.large_string()),
    "list": pyarrow.array([[1, 2], None], pyarrow.list_(pyarrow.int64())),
}


def sent_and_fetched(source: Path, answers: Any = None, rows: Any = ()) -> tuple[AnswerColumns, list[Any]]:
    """The rows of a table after their way to a server and back."""
    with open_table(source) as table:
        documents = [json.loads(json.dumps(row.document)) for row in table if isinstance(row, Row)]
        known = KnownColumns(
            "/v1/chat/completions", table.columns or (), table.types, answers or {"a": "text"}
        )
    columns = AnswerColumns(known)
    whole = rows or [{"answer": None, "error": None}] * len(documents)
    found = [{"document": document, **row} for document, row in zip(documents, whole, strict=True)]
    for row in found:
        columns.see(row)
    return columns, found


def write(path: Path, columns: AnswerColumns, rows: list[Any]) -> Path:
    with path.open("w+b") as file:
        kind = path.suffix.removeprefix(".")
        write_table(kind, file, columns.names, lambda: map(columns.values, rows), columns.types)
    return path


def test_parquet_comes_out_with_the_types_that_went_in(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table(ARROW), source)
    path = write(tmp_path / "out.parquet", *sent_and_fetched(source))
    table = pyarrow.parquet.read_table(source)  # Parquet has not all types of Arrow
    assert pyarrow.parquet.read_table(path).select(list(ARROW)).equals(table)


def test_dates_of_a_sheet_are_dates_in_every_format_that_has_them(tmp_path: Path) -> None:
    source = tmp_path / "in.xlsx"
    header = ["day", "moment", "time", "span", "day or text", "day as text", "yes"]
    rows = [
        [DAY, MOMENT.replace(microsecond=0), TIME, SPAN, DAY, "2024-02-29", True],
        [datetime.date(1999, 1, 1), MIDNIGHT, None, None, "unknown", None, False],
    ]
    with xlsxwriter.Workbook(source) as book:
        sheet = book.add_worksheet()
        sheet.write_row(0, 0, header)
        shown = ["yyyy-mm-dd", "yyyy-mm-dd hh:mm:ss", "hh:mm:ss", "[h]:mm:ss", "dd.mm.yyyy", "@", "General"]
        formats = [book.add_format({"num_format": each}) for each in shown]
        for number, row in enumerate(rows, start=1):
            for column, value in enumerate(row):
                sheet.write(number, column, value, formats[column])
    fetched = sent_and_fetched(source)
    path = write(tmp_path / "out.xlsx", *fetched)
    again, first = (
        CalamineWorkbook.from_path(each).get_sheet_by_index(0).to_python() for each in (path, source)
    )
    assert [row[: len(header)] for row in again] == first
    assert {type(cell) for cell in first[1]} >= {
        datetime.date,
        datetime.datetime,
        datetime.time,
        datetime.timedelta,
    }

    table = pyarrow.parquet.read_table(write(tmp_path / "out.parquet", *fetched))
    assert [str(kind) for kind in table.schema.types[: len(header)]] == [
        "date32[day]", "timestamp[us]", "time64[us]", "duration[us]", "string", "string", "bool",
    ]  # fmt: skip
    assert table["day"].to_pylist() == [row[0] for row in rows]
    assert table["span"].to_pylist() == [SPAN, None]
    assert table["day or text"].to_pylist() == ["2024-02-29", "unknown"]


def test_what_excel_has_not_is_text(tmp_path: Path) -> None:
    moments = [
        datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
        datetime.datetime(1850, 1, 2, tzinfo=datetime.UTC),
    ]
    table = pyarrow.table({
        "zone": pyarrow.array(moments, pyarrow.timestamp("us", "UTC")),
        "old": pyarrow.array([datetime.date(1850, 1, 2), DAY]),
        "exact": pyarrow.array([Decimal("12345678901234567.25"), Decimal("0.25")]),
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    path = write(tmp_path / "out.xlsx", *sent_and_fetched(tmp_path / "in.parquet"))
    _, *rows = CalamineWorkbook.from_path(path).get_sheet_by_index(0).to_python()
    assert [row[:3] for row in rows] == [
        ["2024-01-02T00:00:00+00:00", "1850-01-02", "12345678901234567.25"],
        ["1850-01-02T00:00:00+00:00", DAY, 0.25],
    ]


SCHEMA = {
    "type": "object",
    "properties": {
        "total": {"type": "number"},
        "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "paid": {"type": ["boolean", "null"]},
        "due": {"type": "string", "format": "date"},
        "kind": {"type": "string", "enum": ["a", "b"]},
        "lines": {"type": "array", "items": {"type": "number"}},
        "any": {"anyOf": [{"type": "number"}, {"type": "string"}]},
    },
}
CUT = {
    "answer": None,
    "raw_answer": '{"total": 12.5, "cou',
    "error": {"code": "output_truncated", "message": "The answer was cut."},
}


def types_of_answers(tmp_path: Path, *answers: Any) -> pyarrow.Table:
    source = tmp_path / "in.csv"
    source.write_text("id\n" + "".join(f"{number}\n" for number in range(1 + len(answers))))
    types = answer_types({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}})
    rows = [CUT, *({"answer": answer, "error": None} for answer in answers)]
    return pyarrow.parquet.read_table(write(tmp_path / "out.parquet", *sent_and_fetched(source, types, rows)))


def test_an_answer_that_was_cut_changes_no_type(tmp_path: Path) -> None:
    answer = {
        "total": 1,
        "count": None,
        "paid": None,
        "due": "2024-02-29",
        "kind": "a",
        "lines": [1.5],
        "any": 3,
    }
    table = types_of_answers(tmp_path, answer)
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "string", "total": "double", "count": "int64", "paid": "bool", "due": "date32[day]", "kind": "string",
        "lines": "list<element: double>", "any": "int64", "_raw_answer": "string", "_error": "string",
    }  # fmt: skip
    assert table["total"].to_pylist() == [None, 1.0]
    assert table["due"].to_pylist() == [None, DAY]
    assert table["_raw_answer"].to_pylist() == [CUT["raw_answer"], None]
    only_cut = types_of_answers(tmp_path)
    assert [str(only_cut.schema.field(name).type) for name in ("total", "count", "paid", "due")] == [
        "double", "int64", "bool", "date32[day]",
    ]  # fmt: skip


def test_a_column_with_another_value_than_its_type_is_text(tmp_path: Path) -> None:
    answers = ({"due": "2024-02-30", "total": 2**70}, {"due": "2024-02-29", "total": "many"})
    table = types_of_answers(tmp_path, *answers)
    assert table["due"].to_pylist() == [None, "2024-02-30", "2024-02-29"]
    assert table["total"].to_pylist() == [None, str(2**70), "many"]


def test_a_type_that_nobody_knows_is_ignored() -> None:
    for kind in ("parquet", "xlsx"):
        file = io.BytesIO()
        assert (
            write_table(kind, file, ["a", "b"], lambda: iter([["x", 1]]), ["dat\x7f", "timestamp[years]"])
            == 1
        )
