"""Which format a text has: by its first lines, and by its name where they leave a choice."""

from __future__ import annotations

from pathlib import PurePosixPath

from bros_batch.documents.json_object import json_object
from bros_batch.documents.readers.document_text import is_document, is_html
from bros_batch.request_error import RequestError

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", ".tab")
LINES_LOOKED_AT = 10


def text_format(file_name: str, head: str) -> str:
    """Return `jsonl`, `json`, `csv` or `document` for a text that begins with `head`."""
    suffix = PurePosixPath(file_name).suffix.lower()
    start = head.lstrip()
    if start.startswith("{"):
        if suffix in JSON_LINES or any(map(_is_object, start.splitlines()[:LINES_LOOKED_AT])):
            return "jsonl"
        if suffix not in TABLES:
            return "json"
    if start.startswith("[") and start[1:].lstrip()[:1] in ("{", "]", "") and suffix not in TABLES:
        return "json"
    if suffix in JSON_LINES:
        return "jsonl"
    if suffix == ".json":
        return "json"
    if is_html(head.encode()[:1024]):
        return "document"
    if is_document(file_name):
        return "csv" if suffix == ".txt" and _is_table(head) else "document"
    return "csv"


def _is_object(line: str) -> bool:
    try:
        json_object(line.strip().encode(errors="replace"))
    except RequestError:
        return False
    return True


def _is_table(head: str) -> bool:
    """Whether a text that need not be one is a table beyond doubt: tabs separate as many cells in each of its lines."""
    lines = [line for line in head.splitlines(keepends=True)[:100] if line.strip()]
    if len(lines) < 2:
        return False
    counts = {line.count("\t") for line in (lines[:-1] if len(lines) > 2 else lines)}
    return len(counts) == 1 and counts != {0}
