"""Every format, packing and place: read as its rows, with the types that the format has."""

from __future__ import annotations

import http.server
import io
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bros_batch.documents.readers.open_table import open_table
from bros_batch.documents.readers.table import BadRow, Row, Table, UnreadableTable
from tests.bros_batch.documents.readers.factories import (
    CSV_ROWS,
    HTML,
    PACKINGS,
    ROWS,
    as_csv,
    as_json,
    as_json_lines,
    as_parquet,
    as_xlsx,
    as_zip,
    docx_of,
    pdf_of,
    write_documents,
)
from tests.http_server import http_server

# The content, the name, the format, and the rows as the format has them.
FORMATS: dict[str, tuple[bytes, str, list[dict[str, Any]]]] = {
    "csv": (as_csv(), "table.csv", CSV_ROWS),
    "tsv": (as_csv("\t"), "table.tsv", CSV_ROWS),
    "jsonl": (as_json_lines(), "table.jsonl", ROWS),
    "json": (as_json(), "table.json", ROWS),
    "parquet": (as_parquet(), "table.parquet", ROWS),
    "xlsx": (as_xlsx(), "table.xlsx", ROWS),
}
DOCUMENTS = {
    "a.txt": ("Grüße", None),
    "b.md": ("# Title\n\nText", None),
    "c.html": ("T\nCafé\nno", None),
    "sub/d.pdf": ("First page\n\nSecond page", 2),
    "sub/e.docx": ("One\nTwo\nleft\tright", None),
}


def documents(table: Table) -> list[dict[str, Any]]:
    rows = list(table)
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert all(isinstance(row, Row) for row in rows), rows
    return [row.document for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_recognized_by_its_content(kind: str) -> None:
    data, name, expected = FORMATS[kind]
    for given in (name, "table", "stdin"):
        table = open_table(io.BytesIO(data), given)
        assert table.format == kind
        assert table.columns in (None, list(ROWS[0]))
        assert documents(table) == expected, given


@pytest.mark.parametrize("packing", [*PACKINGS, "zip"])
def test_packed_tables_are_unpacked_while_they_are_read(packing: str) -> None:
    for kind, (data, name, expected) in FORMATS.items():
        packed = as_zip(name, data) if packing == "zip" else PACKINGS[packing](data)
        for given in (f"{name}.{packing}", "table"):
            with open_table(io.BytesIO(packed), given) as table:
                assert (table.format, documents(table)) == (kind, expected), given


def test_a_folder_is_a_table_of_its_documents(tmp_path: Path) -> None:
    write_documents(tmp_path)
    with open_table(tmp_path) as table:
        assert (table.format, table.columns, table.id_field) == (
            "documents",
            ["path", "text", "pages"],
            "path",
        )
        assert table.notes == [f"1 file that is no document is left out, such as {tmp_path / 'table.csv'}."]
        rows = list(table)
    found = {
        row.document["path"]: (row.document["text"], row.document["pages"])
        for row in rows
        if isinstance(row, Row)
    }
    assert found == DOCUMENTS
    assert [row.message for row in rows if isinstance(row, BadRow)] == [
        "Row 4, sub/broken.pdf: the PDF is damaged; open and save it again.",
        "Row 7, sub/scan.pdf: the PDF has no text on any of its 2 pages; it may be scanned, and needs OCR first.",
    ]


def test_a_pattern_names_documents(tmp_path: Path) -> None:
    write_documents(tmp_path)
    with open_table(f"{tmp_path}/**/*.docx") as table:
        assert [row.document["text"] for row in table if isinstance(row, Row)] == ["One\nTwo\nleft\tright"]
    with pytest.raises(UnreadableTable, match=r"has no \.txt, .* files, but 1 other, "):
        open_table(f"{tmp_path}/*.csv")


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.pdf", pdf_of("One"), "One"),
        ("a", pdf_of("One"), "One"),
        ("a.docx", docx_of("One"), "One\nleft\tright"),
        ("a.txt", b"One, two\nthree", "One, two\nthree"),
        ("a", HTML, "T\nCafé\nno"),
    ],
)
def test_a_single_document_is_a_table_of_one_row(name: str, data: bytes, text: str) -> None:
    (row,) = documents(open_table(io.BytesIO(data), name))
    assert (row["path"], row["text"]) == (name, text)


def test_a_zip_file_may_hold_documents() -> None:
    data = io.BytesIO()
    import zipfile

    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("x/a.txt", "One")
        archive.writestr("x/b.pdf", pdf_of("Two"))
    assert [(row["path"], row["text"]) for row in documents(open_table(data, "x.zip"))] == [
        ("x/a.txt", "One"),
        ("x/b.pdf", "Two"),
    ]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http_server(partial(Handler, directory=str(tmp_path))) as url:
        yield url


def test_urls_of_the_web_are_read(web: str, tmp_path: Path) -> None:
    for data, name, expected in FORMATS.values():
        (tmp_path / name).write_bytes(data)
        with open_table(f"{web}/{name}?x=1") as table:
            assert (documents(table), table.size_bytes, table.bytes_read()) == (
                expected,
                len(data),
                len(data),
            )
    with pytest.raises(UnreadableTable, match="404"):
        open_table(f"{web}/nothing.csv")
    with pytest.raises(UnreadableTable, match="cannot be read"):
        open_table("http://127.0.0.1:1/table.csv")


def test_urls_of_stores_are_read(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for data, name, expected in FORMATS.values():
        store.pipe(f"/tables/{name}", data)
        with open_table(f"memory://tables/{name}") as table:
            assert documents(table) == expected
    store.pipe("/docs/a.txt", b"One")
    store.pipe("/docs/sub/b.pdf", pdf_of("Two"))
    for url in ("memory://docs", "memory://docs/**"):
        with open_table(url) as table:
            assert [row["text"] for row in documents(table)] == ["One", "Two"]
    with pytest.raises(UnreadableTable, match="does not exist"):
        open_table("memory://tables/nothing.csv")
    with pytest.raises(UnreadableTable, match="cannot be read"):
        open_table("nonsense://x/y.csv")


def test_stdin_is_read() -> None:
    program = (
        "import sys\n"
        "from bros_batch.documents.readers.open_table import open_table\n"
        "table = open_table('-')\n"
        "print(table.name, table.format, [row.document for row in table] == eval(sys.argv[1]))"
    )
    for kind, (data, _, expected) in FORMATS.items():
        command = [sys.executable, "-c", program, repr(expected)]
        done = subprocess.run(command, input=data, capture_output=True, check=True)
        assert done.stdout.decode().strip() == f"stdin {kind} True"


def test_a_format_costs_an_import_only_when_it_is_read() -> None:
    program = (
        "import io, sys\n"
        "from bros_batch.documents.readers.open_table import open_table\n"
        "list(open_table(io.BytesIO(b'a,b\\n1,2\\n'), 'x.csv'))\n"
        "print([name for name in ('torch', 'pyarrow', 'python_calamine', 'fsspec', 'httpx', 'pypdfium2', 'docx', 'bs4')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"


def sheet_of(rows: list[list[object]]) -> io.BytesIO:
    import xlsxwriter

    data = io.BytesIO()
    with xlsxwriter.Workbook(data, {"in_memory": True}) as book:
        sheet = book.add_worksheet()
        for number, row in enumerate(rows):
            sheet.write_row(number, 0, row)
    data.seek(0)
    return data


def test_a_cover_sheet_of_one_row_is_passed_over() -> None:
    import xlsxwriter

    data = io.BytesIO()
    with xlsxwriter.Workbook(data, {"in_memory": True}) as book:
        book.add_worksheet("Cover").write(0, 0, "see the next sheet")
        book.add_worksheet("Data").write_column(0, 0, ["text", "a"])
    table = open_table(data, "book.xlsx")
    assert table.columns == ["text"]
    assert table.notes == ["The sheet 'Data' is read; the others are: Cover."]


def test_without_a_name_the_first_sheet_that_has_all_fields_is_read() -> None:
    import xlsxwriter

    data = io.BytesIO()
    with xlsxwriter.Workbook(data, {"in_memory": True}) as book:
        book.add_worksheet("Cover").write_column(0, 0, ["about", "this book"])
        book.add_worksheet("Empty").write(3, 0, "")
        for name, columns in (("Lookup", ["code"]), ("Invoices", ["code", "Total  due"])):
            sheet = book.add_worksheet(name)
            sheet.write_row(0, 0, columns)
            sheet.write_row(1, 0, [name] * len(columns))

    def read(fields: tuple[str, ...] = (), sheet: str | None = None) -> str:
        table = open_table(data, "book.xlsx", sheet=sheet, fields=fields)
        assert sorted(table.sheets) == ["Cover", "Empty", "Invoices", "Lookup"]
        said = [f"The sheet '{table.sheets[0]}' is read; the others are: {', '.join(table.sheets[1:])}."]
        assert table.notes == (said if sheet is None else [])
        return table.sheets[0]

    assert read() == read(("about",)) == read(("code", "no such")) == read(sheet="") == "Cover"
    assert read(("code",)) == "Lookup"
    assert read(("code", "Total due")) == "Invoices"
    assert read(("code",), sheet="Cover") == "Cover", "the user has chosen"


def test_titles_above_the_names_of_columns_are_left_out_and_said() -> None:
    table = open_table(
        sheet_of([["Invoices"], [None], ["", "2026"], ["no", "text"], [1, "a"], [2, "b"]]), "t.xlsx"
    )
    assert table.columns == ["no", "text"]
    assert table.notes == ["The first 2 rows are titles and left out: 'Invoices'."]
    assert [row.document for row in table if isinstance(row, Row)] == [
        {"no": 1, "text": "a"},
        {"no": 2, "text": "b"},
    ]


@pytest.mark.parametrize(
    "rows",
    [
        [["text"], ["a"], ["b", "astray"], ["c"]],
        [["text"], ["a"], ["b"]],
        [["text", "no"], ["a"], ["b", 2], ["c", 3]],
        [["text"]],
    ],
)
def test_a_first_row_that_is_no_title_names_the_columns(rows: list[list[object]]) -> None:
    table = open_table(sheet_of(rows), "t.xlsx")
    assert table.columns == rows[0] and table.notes == []


def test_errors_of_excel_are_their_text_and_the_sheet_can_be_chosen() -> None:
    import xlsxwriter

    data = io.BytesIO()
    with xlsxwriter.Workbook(data, {"in_memory": True}) as book:
        book.add_worksheet("First").write_row(0, 0, ["a"])
        sheet = book.add_worksheet("Second")
        sheet.write_row(0, 2, ["a", "b"])
        sheet.write_formula(1, 2, "=1/0", None, "#DIV/0!")
        sheet.write(1, 3, 7)
        sheet.write(2, 2, "x")
        sheet.write(2, 5, "note")
    table = open_table(data, "book.xlsx", sheet="Second")
    assert table.notes == [], "who names a sheet need not be told of the others"
    assert list(table) == [
        Row(1, {"a": "#DIV/0!", "b": 7}),
        BadRow(2, "Row 2: the cell F3 is in a column that has no name; name the column, or empty the cell."),
    ]
    with pytest.raises(UnreadableTable, match="no sheet 'Third'; its sheets are: First, Second"):
        open_table(data, "book.xlsx", sheet="Third")
