"""One small table and one set of documents, in every format and packing."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import docx
import pyarrow
import pyarrow.parquet
import xlsxwriter
import zstandard

ROWS = [
    {"id": 1, "text": "Grüße,\nDear Sirs", "total": 1.5, "paid": True, "due": "2024-01-02"},
    {"id": 2, "text": 'say "hi"', "total": 20.0, "paid": False, "due": "2024-02-03"},
    {"id": 3, "text": "€ 5; | \t", "total": None, "paid": None, "due": None},
]
CSV_ROWS = [{name: "" if value is None else str(value) for name, value in row.items()} for row in ROWS]


def as_csv(delimiter: str = ",") -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return buffer.getvalue().encode()


def as_json_lines() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def as_json() -> bytes:
    return json.dumps(ROWS, indent=2).encode()


def as_parquet() -> bytes:
    dated = [
        {**row, "due": None if row["due"] is None else datetime.date.fromisoformat(str(row["due"]))}
        for row in ROWS
    ]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(dated), buffer)
    return buffer.getvalue()


def as_xlsx() -> bytes:
    buffer = io.BytesIO()
    with xlsxwriter.Workbook(buffer, {"in_memory": True}) as book:
        date = book.add_format({"num_format": "yyyy-mm-dd"})
        book.add_worksheet("Cover")
        sheet = book.add_worksheet("Invoices")
        sheet.write_row(1, 1, list(ROWS[0]))
        for number, row in enumerate(ROWS, start=3):  # after an empty row
            for column, value in enumerate(row.values(), start=1):
                if column == 5 and value is not None:
                    sheet.write_datetime(number, column, datetime.datetime.fromisoformat(str(value)), date)
                elif value is not None:
                    sheet.write(number, column, value)
    return buffer.getvalue()


def as_zip(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._x", b"junk")
        archive.writestr(name, data)
    return buffer.getvalue()


PACKINGS = {
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def pdf_of(*pages: str) -> bytes:
    """A PDF with a line of text on each page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content))
    data = b"%PDF-1.4\n"
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    data += b"xref\n0 %d\n0000000000 65535 f \n%b" % (size, table)
    start = data.rindex(b"xref")
    return data + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, start)


def docx_of(*paragraphs: str) -> bytes:
    document = docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    table = document.add_table(rows=1, cols=2)
    table.cell(0, 0).text, table.cell(0, 1).text = "left", "right"
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


HTML = (
    b"<!doctype html><html><head><style>x{}</style><title>T</title></head>"
    b"<body><p>Caf\xc3\xa9 <b>no</b></p></body></html>"
)


def write_documents(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "a.txt").write_bytes("Grüße".encode("utf-16"))
    (folder / "b.md").write_bytes(b"# Title\n\nText")
    (folder / "c.html").write_bytes(HTML)
    (folder / "sub" / "d.pdf").write_bytes(pdf_of("First page", "Second page"))
    (folder / "sub" / "e.docx").write_bytes(docx_of("One", "Two"))
    (folder / "sub" / "scan.pdf").write_bytes(pdf_of("", ""))
    (folder / "sub" / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    (folder / ".hidden.txt").write_bytes(b"hidden")
    (folder / "table.csv").write_bytes(as_csv())
