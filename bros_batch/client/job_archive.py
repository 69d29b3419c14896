"""A job in a zip file: `job.json` about the job and its counts, and `rows.jsonl` with a line for each row."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import msgspec

from bros_batch.documents.job_file import (
    END,
    MAX_HEAD_BYTES,
    MAX_ROW_BYTES,
    JobEnd,
    RowCounts,
    StoredRow,
    form_of_rows,
    read_head,
    read_line,
)
from bros_batch.request_error import RequestError

JOB, ROWS = "job.json", "rows.jsonl"


class DamagedArchive(ValueError):
    """A file that is no exported job, or one that is damaged; the sentence says where."""


def write_archive(lines: Iterable[bytes], file: IO[bytes]) -> RowCounts:
    """Write the lines of an exported job to a zip file. Raises DamagedArchive if the last line is missing."""
    source = iter(lines)
    head = next(source, b"")
    end = None
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(ROWS, "w", force_zip64=True) as rows:
            waiting = b""
            for line in source:
                rows.write(waiting)
                waiting = line
            if waiting.startswith(END):
                end = msgspec.json.decode(waiting, type=JobEnd)
        if end is None:
            raise DamagedArchive("The server ended the export too early. Try again.")
        about = {**json.loads(head), **json.loads(waiting)}
        archive.writestr(JOB, json.dumps(about, indent=2, ensure_ascii=False))
    return end.end


def archive_lines(path: str) -> Iterator[bytes]:
    """Yield the lines of the job in a zip file as they were exported; none of them is held for long."""
    with _explained(path), zipfile.ZipFile(path) as archive:
        with archive.open(JOB) as member:
            raw = member.read(MAX_HEAD_BYTES + 1)
        if len(raw) > MAX_HEAD_BYTES:
            raise DamagedArchive(f"{path} cannot be imported: its {JOB} is too long.")
        about = json.loads(raw)
        end = about.pop("end", None)
        yield _line(about)
        with archive.open(ROWS) as rows:
            while line := rows.readline(MAX_ROW_BYTES + 1):
                yield line
        yield _line({"end": end})


def check_archive(path: str) -> RowCounts:
    """The counts of the job in a zip file. Raises DamagedArchive unless all of it can be imported."""
    counts = RowCounts()
    form = ""
    for number, line in enumerate(archive_lines(path)):
        where = JOB
        try:
            if number == 0:
                form = form_of_rows(read_head(line))
            elif line.startswith(END):
                read = read_line(line, form)
                assert isinstance(read, JobEnd)
                counts.check_end(read.end)
            else:
                where = f"line {number} of {ROWS}"
                counts.add(_read_row(line, form))
        except RequestError as error:
            raise DamagedArchive(f"{path} cannot be imported: {where}: {error.message}") from None
    return counts


def _read_row(line: bytes, form: str) -> StoredRow:
    if not line.endswith(b"\n"):
        raise RequestError("it is too long or cut short.")
    row = read_line(line, form)
    assert isinstance(row, StoredRow)  # only a last line begins like one
    return row


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise DamagedArchive(f"{path} is not an exported job: {error.args[0]}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedArchive(f"{path} is not a zip file, or it is damaged: {error}") from None
    except (ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DamagedArchive):
            raise
        raise DamagedArchive(f"{path} cannot be imported: its {JOB} is not a JSON object.") from None


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
