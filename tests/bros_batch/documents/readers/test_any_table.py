"""Any table in any dialect comes back, and no damage to a file is more than a sentence or a bad row."""

from __future__ import annotations

import csv
import io
import random
import tracemalloc
from contextlib import nullcontext
from itertools import chain, islice, repeat
from typing import BinaryIO, cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bros_batch.documents.readers.open_table import open_table
from bros_batch.documents.readers.table import BadRow, Row, UnreadableTable
from bros_batch.documents.readers.table_lines import LineStream, row_lines
from bros_batch.documents.readers.text_encoding import WINDOWS_1252, encoding_of
from tests.bros_batch.documents.readers.factories import PACKINGS, as_zip, docx_of, pdf_of
from tests.bros_batch.documents.readers.test_formats import FORMATS

CELLS = st.text(
    st.one_of(
        st.sampled_from(list("ab0 ,;|\t\"'\\\r\n={[<#é€\u2028\x0b\ufeff")),
        st.characters(blacklist_categories=["Cs", "Cc"]),
    ),
    max_size=8,
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    columns = draw(st.lists(st.text("abcxyz_", min_size=1, max_size=4), min_size=1, max_size=4, unique=True))
    rows = st.lists(CELLS, min_size=len(columns), max_size=len(columns))
    return columns, draw(st.lists(rows, max_size=6))


@settings(max_examples=300, deadline=None)
@given(
    table=tables(),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
)
def test_a_table_comes_back_equal(
    table: tuple[list[str], list[list[str]]], delimiter: str, quoting: int, end: str, encoding: str
) -> None:
    columns, rows = table
    buffer = io.StringIO(newline="")
    # Python's writer quotes only those line breaks of cells that are a part of its own.
    quoting = quoting if end == "\r\n" else csv.QUOTE_ALL
    writer = csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([columns, *rows])
    text = buffer.getvalue()
    if encoding == "cp1252":
        text = text.encode("cp1252", errors="replace").decode("cp1252")
        rows = [[cell.encode("cp1252", errors="replace").decode("cp1252") for cell in row] for row in rows]
    data = text.encode(encoding)
    if encoding == "cp1252":
        assume(data.isascii() or encoding_of(data, is_whole=True) == (WINDOWS_1252, 0))  # not UTF-8 by chance
    expected = [Row(number, dict(zip(columns, row, strict=True))) for number, row in enumerate(rows, start=1)]
    assert list(open_table(io.BytesIO(data), "table.csv")) == expected


DAMAGED = {
    **{kind: (data, name) for kind, (data, name, _) in FORMATS.items()},
    **{packing: (pack(FORMATS["csv"][0] * 50), f"t.csv.{packing}") for packing, pack in PACKINGS.items()},
    "zip": (as_zip("t.csv", FORMATS["csv"][0]), "t.zip"),
    "pdf": (pdf_of("One", "Two"), "a.pdf"),
    "docx": (docx_of("One"), "a.docx"),
    "html": (b"<html><p>One</p>" * 20, "a.html"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_a_sentence_or_a_bad_row(kind: str) -> None:
    data, name = DAMAGED[kind]
    rng = random.Random(kind)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 3, 30])):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.choice([0, 1, 8])] = rng.randbytes(rng.choice([0, 1, 4]))
        if rng.random() < 0.4:
            del damaged[rng.randrange(len(damaged)) :]
        try:
            with open_table(io.BytesIO(bytes(damaged)), name) as table:
                for row in islice(table, 1000):
                    assert isinstance(row, Row | BadRow)
                    next(row_lines([row]))
        except UnreadableTable as error:
            assert str(error).endswith((".", "...")) and "\n" not in str(error), error


def test_a_bomb_is_not_unpacked_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from bros_batch.documents.readers import compression, zip_archive
    from tests.bros_batch.documents.readers.factories import as_xlsx

    monkeypatch.setattr(compression, "SMALL_BYTES", 2 * 1024**2)
    monkeypatch.setattr(compression, "MAX_RATIO", 100)
    bomb = b"a,b\n" + b"1,2\n" * 4_000_000
    for packed in (PACKINGS["gz"](bomb), PACKINGS["zst"](bomb), as_zip("t.csv", bomb)):
        with (
            pytest.raises(UnreadableTable, match="100 times its size"),
            open_table(io.BytesIO(packed)) as table,
        ):
            for _ in table:
                pass
    monkeypatch.setattr(zip_archive, "MAX_OFFICE_BYTES", 1000)
    with pytest.raises(UnreadableTable, match="unpacks to more than"):
        open_table(io.BytesIO(as_xlsx()), "t.xlsx")


def test_a_sheet_with_a_far_cell_is_rejected() -> None:
    import xlsxwriter

    data = io.BytesIO()
    with xlsxwriter.Workbook(data, {"in_memory": True}) as book:
        sheet = book.add_worksheet()
        sheet.write(0, 0, "a")
        sheet.write(1_000_000, 16_000, "far")
    with pytest.raises(UnreadableTable, match="more than 32,000,000 cells; save it as CSV"):
        open_table(data, "t.xlsx")


def test_a_stream_of_lines_is_read_in_any_sizes() -> None:
    lines = [b"%d\n" % number for number in range(1000)]
    for size in (1, 7, 4096, -1):
        stream = LineStream(lines)
        assert b"".join(iter(lambda: stream.read(size), b"")) == b"".join(lines)  # noqa: B023


@pytest.mark.parametrize(
    ("start", "row"),
    [(b"a,b\n", b"1,%s\n"), (b"", b'{"a": 1, "b": "%s"}\n'), (b"[", b'{"a": 1, "b": "%s"},\n')],
)
def test_memory_does_not_grow_with_the_table(start: bytes, row: bytes) -> None:
    stream = LineStream(chain([start], repeat(row % (b"x" * 1000), 20_000)))
    tracemalloc.start()
    count = 0
    with pytest.raises(UnreadableTable) if start == b"[" else nullcontext():  # the array does not end
        for _ in open_table(cast("BinaryIO", stream)):
            count += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 12 * 1024**2
