"""Opens a table. Its format is found by content; its name only decides between formats that look alike."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from bros_batch.documents.readers import places
from bros_batch.documents.readers.byte_source import ByteSource, Counted
from bros_batch.documents.readers.compression import Unpacked, unpacked
from bros_batch.documents.readers.csv_table import csv_table
from bros_batch.documents.readers.document_text import is_document
from bros_batch.documents.readers.documents_table import (
    DocumentFile,
    documents_table,
    local_documents,
)
from bros_batch.documents.readers.excel_table import SheetChoice, excel_table
from bros_batch.documents.readers.json_lines import json_lines_table
from bros_batch.documents.readers.json_values import json_table
from bros_batch.documents.readers.parquet_table import parquet_table
from bros_batch.documents.readers.table import Table, UnreadableTable
from bros_batch.documents.readers.text_encoding import encoding_of
from bros_batch.documents.readers.text_format import text_format
from bros_batch.documents.readers.zip_archive import member_stream, members, office_format, opened_archive

STDIN = "-"
ZIP = b"PK\x03\x04"
EMPTY_ZIP = b"PK\x05\x06"
OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
# The first bytes of files that hold no table we can read, with what they are and a way out.
_FOREIGN = (
    (
        b"SQLite format 3\0",
        "an SQLite database; save a table of it as CSV: sqlite3 -header -csv FILE 'SELECT ...'",
    ),
    (b"ARROW1", "an Arrow file; save it as Parquet: pandas.read_feather(FILE).to_parquet(...)"),
    (b"ORC", "an ORC file; save it as Parquet"),
    (b"Obj\x01", "an Avro file; save it as Parquet or JSON lines"),
    (b"\x89HDF", "an HDF5 file; save it as Parquet"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89PNG", "an image; a table, PDF or text is needed"),
    (b"\xff\xd8\xff", "an image; a table, PDF or text is needed"),
    (b"GIF8", "an image; a table, PDF or text is needed"),
)
TAR_AT = 257


def open_table(
    source: str | Path | BinaryIO,
    name: str | None = None,
    *,
    sheet: str | None = None,
    fields: Iterable[str] = (),
) -> Table:
    """Open a file, a directory, a glob pattern, a URL, stdin (`-`) or a stream as a table.

    Raises UnreadableTable if there is no table, and OSError for a file that cannot be opened. A stream should have a
    name, which messages use. `sheet` is the name of a sheet of a workbook; without one, the first that has these
    `fields` is preferred.
    """
    with ExitStack() as resources:
        table = _opened(source, name, SheetChoice(sheet, tuple(fields)), resources)
        table.close = resources.pop_all().close
        return table


def _opened(
    source: str | Path | BinaryIO, name: str | None, sheet: SheetChoice, resources: ExitStack
) -> Table:
    if not isinstance(source, str | Path):
        if source.seekable():
            source.seek(0)
        return _of_stream(name or "the table", None, source, None, sheet, resources)
    text = str(source)
    protocol = places.protocol_of(text)
    if text == STDIN:
        return _of_stream("stdin", None, *places.stdin_stream(), sheet, resources)
    if protocol is None:
        table = local_documents(text)
        if table is not None:
            return table
        return _of_stream(text, Path(text).name, *places.file_stream(text, resources), sheet, resources)
    shown = places.last_part(text)
    if protocol in ("http", "https"):
        return _of_stream(text, shown, *places.http_stream(text, resources), sheet, resources)
    store, path = places.store_of(text, protocol)
    table = places.store_documents(text, store, path)
    if table is not None:
        return table
    return _of_stream(text, shown, *places.store_stream(text, store, path, resources), sheet, resources)


def _of_stream(
    name: str,
    file_name: str | None,
    stream: BinaryIO,
    size: int | None,
    sheet: SheetChoice,
    resources: ExitStack,
) -> Table:
    explain = partial(places.broken, name) if places.protocol_of(name) else _not_explained
    counted = Counted(stream, explain)
    source = unpacked(ByteSource(name, cast("BinaryIO", counted), resources, file_name))
    table = _table(source, sheet)
    table.size_bytes = size
    table.bytes_read = lambda: counted.bytes_read
    return table


def _not_explained(error: Exception) -> None:
    return None


def _table(source: ByteSource, sheet: SheetChoice) -> Table:
    head = source.head
    if not head:
        raise UnreadableTable(f"{source.name} is empty.")
    if head.startswith((ZIP, EMPTY_ZIP)):
        return _of_zip(source, sheet)
    if head.startswith(b"PAR1"):
        return parquet_table(source.name, source.seekable())
    if head.startswith(OLD_OFFICE):
        return excel_table(source.name, "xls", source.seekable(), None, sheet)
    if head[:1024].lstrip().startswith(b"%PDF"):
        return _of_document(source)
    if sheet.name:
        raise UnreadableTable(f"{source.name} is not a workbook, so it has no sheet '{sheet.name}'.")
    foreign = next((kind for start, kind in _FOREIGN if head.startswith(start)), None)
    if foreign is None and head[TAR_AT : TAR_AT + 5] == b"ustar":
        foreign = "a tar archive; unpack it first"
    if foreign is not None:
        raise UnreadableTable(f"{source.name} is {foreign}.")
    return _of_text(source)


def _of_text(source: ByteSource) -> Table:
    found = encoding_of(source.head, source.is_whole)
    if found is None:
        raise UnreadableTable(
            f"{source.name} is neither text in UTF-8, UTF-16 or Windows-1252 nor in another format that can be read; "
            "save it as CSV in UTF-8."
        )
    encoding, mark = found
    kind = text_format(source.file_name, source.head[mark:].decode(encoding, errors="ignore"))
    if kind == "document":
        return _of_document(source)
    stream = source.stream(mark)
    if kind == "jsonl":
        return json_lines_table(source.name, stream, encoding)
    if kind == "json":
        return json_table(source.name, stream, encoding)
    is_tsv = PurePosixPath(source.file_name).suffix.lower() in (".tsv", ".tab")
    return csv_table(source.name, stream, encoding, "\t" if is_tsv else ",")


def _of_document(source: ByteSource) -> Table:
    return documents_table(source.name, [DocumentFile(source.file_name, source.stream)])


def _of_zip(source: ByteSource, sheet: SheetChoice) -> Table:
    file = source.seekable()
    archive = source.resources.enter_context(opened_archive(source.name, file))
    kind = office_format(archive)
    if kind in ("xlsx", "xlsb", "ods"):
        return excel_table(source.name, kind, file, archive, sheet)
    if kind == "docx":
        return _of_document(ByteSource(source.name, source.seekable(), source.resources, source.file_name))
    if kind is not None:
        raise UnreadableTable(f"{source.name} is a {kind} file; save it as PDF.")
    files = members(archive)
    names = [info.filename for info in files]
    if len(files) > 1 and all(map(is_document, names)):
        opened = (
            DocumentFile(info.filename, partial(member_stream, source.name, archive, info)) for info in files
        )
        return documents_table(source.name, opened)
    if len(files) != 1:
        shown = f"{len(files)} files ({', '.join(names[:5])})" if files else "no files"
        raise UnreadableTable(
            f"{source.name} is a zip file with {shown}; submit a zip file with one table, or with documents only."
        )
    packed_bytes = files[0].compress_size
    content = Unpacked(
        source.name, "zip", member_stream(source.name, archive, files[0]), lambda: packed_bytes
    )
    inner = unpacked(ByteSource(source.name, cast("BinaryIO", content), source.resources, names[0]))
    return _table(inner, sheet)
