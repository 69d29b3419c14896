"""A table in each format that is read, answered and written again has its own columns as they were."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from bros_batch.documents.answer_columns import AnswerColumns, KnownColumns
from bros_batch.documents.readers.open_table import open_table
from bros_batch.documents.readers.table import Row
from bros_batch.documents.writers.write_table import write_table
from tests.bros_batch.documents.readers.factories import as_csv, as_json, as_json_lines, as_parquet, as_xlsx

QUIRKS = (
    'id;Amount (EUR);note\r\n0012;"1.234,50";"two\r\nlines"\r\n 7 ;=1+1;"say ""hi"""\r\n8;;\r\n9;1e5;TRUE\r\n'
).encode("utf-16")
TABLES = {
    "csv": as_csv(),
    "quirks.csv": QUIRKS,
    "tsv": as_csv("\t"),
    "jsonl": as_json_lines(),
    "json": as_json(),
    "parquet": as_parquet(),
    "xlsx": as_xlsx(),
}


def read(path: Path) -> tuple[list[str] | None, list[dict[str, Any]]]:
    with open_table(path) as table:
        rows = list(table)
    assert all(isinstance(row, Row) for row in rows), rows
    return table.columns, [row.document for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "xlsx"])
def test_the_own_columns_of_a_table_are_as_they_were(tmp_path: Path, name: str, kind: str) -> None:
    source = tmp_path / f"in.{name}"
    source.write_bytes(TABLES[name])
    columns, documents = read(source)
    rows = [
        {"document": json.loads(json.dumps(document)), "answer": f"answer {number}", "error": None}
        for number, document in enumerate(documents)
    ]
    table = AnswerColumns(KnownColumns("/v1/chat/completions", columns or ()))
    for row in rows:
        table.see(row)
    path = tmp_path / f"out.{kind}"
    with path.open("w+b") as file:
        write_table(kind, file, table.names, lambda: map(table.values, rows))
    written, found = read(path)
    own = list(documents[0])
    assert (written or list(found[0])) == [*own, "answer", "_error"]
    for number, (document, row) in enumerate(zip(documents, found, strict=True)):
        assert row["answer"] == f"answer {number}"
        kept = {column: row[column] for column in own}
        if kind in ("jsonl", "parquet") or (name, kind) == ("xlsx", "xlsx"):
            assert kept == document
        elif kind == "xlsx":
            assert kept == {column: value if value != "" else None for column, value in document.items()}
        else:
            assert kept == {column: as_cell(value) for column, value in document.items()}


def as_cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def test_a_csv_file_that_was_written_is_written_again_as_the_same_bytes(tmp_path: Path) -> None:
    columns = ["id", "é"]
    first, second = io.BytesIO(), io.BytesIO()
    write_table("csv", first, columns, lambda: iter([["1", 'a\r\n"b"'], ["", " =2 "]]))
    (tmp_path / "a.csv").write_bytes(first.getvalue())
    with open_table(tmp_path / "a.csv") as table:
        rows = [[row.document[name] for name in columns] for row in table if isinstance(row, Row)]
    write_table("csv", second, columns, lambda: iter(rows))
    assert first.getvalue() == second.getvalue()
