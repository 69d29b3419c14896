"""Documents as a table: one row per file, with its path, its text, and its number of pages."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from bros_batch.documents.readers.document_text import (
    SUFFIXES,
    UnreadableDocument,
    document_text,
    is_document,
)
from bros_batch.documents.readers.table import BadRow, Row, Table, UnreadableTable

COLUMNS = ["path", "text", "pages"]


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """A file that is opened when its row is read."""

    path: str
    open: Callable[[], AbstractContextManager[BinaryIO]]


def documents_table(name: str, files: Iterable[DocumentFile], notes: list[str] | None = None) -> Table:
    """A table of these files, which must not be none of them."""
    return Table(name, "documents", list(COLUMNS), _rows(files), notes=notes or [], id_field="path")


def _rows(files: Iterable[DocumentFile]) -> Iterator[Row | BadRow]:
    for number, file in enumerate(files, start=1):
        path = file.path.encode(errors="surrogateescape").decode(errors="replace")
        try:
            with file.open() as stream:
                found = document_text(file.path, stream)
        except (UnreadableDocument, UnreadableTable) as error:
            yield BadRow(number, f"Row {number}, {path}: {str(error).rstrip('.')}.", path)
        except OSError as error:
            yield BadRow(number, f"Row {number}, {path}: {error.strerror or error}.", path)
        else:
            yield Row(number, {"path": path, "text": found.text, "pages": found.pages})


def local_documents(source: str) -> Table | None:
    """Open a directory or a glob pattern; None if the source is neither."""
    if Path(source).is_dir():
        paths: Iterable[str] = _walk(source)
        place, part = f"The directory {source}", source
    elif glob.has_magic(source) and not Path(source).exists():
        found = glob.iglob(source, recursive=True)  # noqa: PTH207 (a pattern may be absolute)
        paths = sorted(path for path in found if Path(path).is_file())
        place, part = f"The pattern {source}", ""
    else:
        return None
    return listed_documents(source, place, paths, lambda path: _local_file(path, part))


def local_files(sources: Iterable[str]) -> Table:
    """Open files that a shell has listed, each of which is a document."""
    paths = list(sources)
    for path in paths:
        if not is_document(path):
            raise UnreadableTable(
                f"{path} is not a document (one of {', '.join(SUFFIXES)}); submit tables one by one."
            )
    name = os.path.commonpath([Path(path).parent for path in paths])
    return documents_table(name, (_local_file(path, "") for path in paths))


def listed_documents(
    name: str, place: str, paths: Iterable[str], file_of: Callable[[str], DocumentFile]
) -> Table:
    """A table of the documents among these paths. Raises UnreadableTable if there are none."""
    found: list[str] = []
    others: list[str] = []
    for path in paths:
        (found if is_document(path) else others).append(path)
    if not found:
        raise UnreadableTable(_nothing(place, others))
    count = (
        "1 file that is no document is"
        if len(others) == 1
        else f"{len(others)} files that are no documents are"
    )
    notes = [f"{count} left out, such as {others[0]}."] if others else []
    return documents_table(name, map(file_of, found), notes)


def _nothing(place: str, others: list[str]) -> str:
    wanted = f"no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} files"
    if not others:
        return f"{place} has {wanted}."
    count = "1 other," if len(others) == 1 else f"{len(others)} others, such as"
    return f"{place} has {wanted}, but {count} {others[0]}; submit a table by its own name."


def _local_file(path: str, root: str) -> DocumentFile:
    shown = os.path.relpath(path, root) if root else path
    return DocumentFile(shown, lambda: cast("AbstractContextManager[BinaryIO]", Path(path).open("rb")))


def _walk(root: str) -> Iterator[str]:
    """Yield the files under a directory in the order of their names, without those that are hidden."""
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield str(Path(directory, name))
