"""Zip archives: which kind of file one is, its members, and a bound on what they unpack to."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import BinaryIO, cast

from bros_batch.documents.readers.table import UnreadableTable

MAX_OFFICE_BYTES = 4 * 1024**3
READ_BYTES = 1024**2
# What an archive contains if it is the file of a program, the name of the format, and what to do if it is no table.
_OFFICE = (
    ("xl/workbook.xml", "xlsx"),
    ("xl/workbook.bin", "xlsb"),
    ("word/document.xml", "docx"),
    ("ppt/presentation.xml", "pptx"),
    ("content.xml", "ods"),
)
ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError, RuntimeError)


def opened_archive(name: str, file: BinaryIO) -> zipfile.ZipFile:
    """Open an archive. Raises UnreadableTable if it is damaged or needs a password."""
    try:
        archive = zipfile.ZipFile(file)
    except ERRORS:
        raise UnreadableTable(f"{name} is a damaged zip file; download or make it again.") from None
    if any(info.flag_bits & 1 for info in archive.infolist()):
        raise UnreadableTable(f"{name} needs a password; save it without one.")
    return archive


def office_format(archive: zipfile.ZipFile) -> str | None:
    """Return the format of an archive that is the file of an office program."""
    names = set(archive.namelist())
    return next((kind for part, kind in _OFFICE if part in names), None)


def members(archive: zipfile.ZipFile) -> Sequence[zipfile.ZipInfo]:
    """Return the files of an archive, without those that programs hide in it."""
    return [
        info
        for info in archive.infolist()
        if not info.is_dir()
        and not info.filename.startswith("__MACOSX/")
        and not info.filename.rsplit("/", 1)[-1].startswith(".")
    ]


def check_sizes(
    name: str, archive: zipfile.ZipFile, look: Callable[[str], Callable[[bytes], None] | None] | None = None
) -> None:
    """Unpack all of an archive once, without keeping it, since the sizes that it declares may be wrong.

    Raises UnreadableTable if it is damaged or larger than MAX_OFFICE_BYTES. `look` returns what the data of a member is
    passed to, or None.
    """
    size = 0
    try:
        for info in archive.infolist():
            info.file_size = 2 * MAX_OFFICE_BYTES + READ_BYTES  # to the end of the data, or beyond the bound
            see = look(info.filename) if look is not None else None
            with archive.open(info) as member:
                while data := member.read(READ_BYTES):
                    size += len(data)
                    if size > MAX_OFFICE_BYTES:
                        raise UnreadableTable(
                            f"{name} unpacks to more than {MAX_OFFICE_BYTES // 1024**3} GB; save it as CSV."
                        )
                    if see is not None:
                        see(data)
    except ERRORS:
        raise UnreadableTable(f"{name} is damaged: a part of it cannot be unpacked.") from None


def member_stream(name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    """Open a member for reading. Raises UnreadableTable if it is damaged where it begins."""
    try:
        return cast("BinaryIO", archive.open(info))
    except ERRORS:
        raise UnreadableTable(f"{name} is damaged: {info.filename} cannot be unpacked.") from None
