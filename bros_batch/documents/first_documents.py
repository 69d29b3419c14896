"""A few documents of an input file, for whoever looks at them before a job computes all."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bros_batch.documents.form import is_bad_row
from bros_batch.documents.json_object import json_object
from bros_batch.request_error import RequestError

MAX_LINES = 100
MAX_BYTES = 16 * 1024**2
SAMPLE_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class FirstDocument:
    """A document with the number of its row, and its line as it is in the file."""

    row: int
    document: dict[str, Any]
    line: str


def first_documents(path: Path, count: int) -> list[FirstDocument]:
    """Return the first `count` documents among the first lines. Lines that hold none are left out."""
    found: list[FirstDocument] = []
    left = MAX_BYTES
    with path.open("rb") as file:
        for row in range(1, MAX_LINES + 1):
            line = file.readline(left)
            left -= len(line)
            if not line or left <= 0 or len(found) == count:
                break
            try:
                document = json_object(line)
            except RequestError:
                continue
            if not is_bad_row(document):
                found.append(FirstDocument(row, document, line.decode()))
    return found


def sampled_lines(path: Path, count: int) -> list[str]:
    """Return the first line of a file, and up to `count` others from random places of it, none of them twice."""
    size_bytes = path.stat().st_size
    left = SAMPLE_BYTES
    with path.open("rb") as file:
        lines = [file.readline(left)]
        left -= len(lines[0])
        seen = {0}
        for _ in range(count):
            file.seek(random.randrange(max(size_bytes, 1)))
            file.readline(MAX_BYTES)  # the rest of the line that this place is in
            if (start := file.tell()) in seen:
                continue
            seen.add(start)
            line = file.readline(max(left, 1))
            left -= len(line)
            if left <= 0:
                break
            if line.strip():
                lines.append(line)
    return [line.decode(errors="replace") for line in lines]
