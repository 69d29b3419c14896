"""The lines of an input file, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader

SKIP_BYTES = 1024**2
UTF8_BOM = b"\xef\xbb\xbf"


def input_lines(source: BufferedReader, max_bytes: int) -> Iterator[tuple[bytes | None, int]]:
    """Yield each line from where the file stands, and how many bytes it takes there.

    A line comes without the white space around it, so a blank one is empty. It is None if it is longer than
    `max_bytes`.
    """
    is_first = source.tell() == 0
    while raw := source.readline(max_bytes + 2):  # room for CR LF after a line of just `max_bytes` bytes
        size = len(raw)
        ended = raw.endswith(b"\n")
        if size > max_bytes and (not ended or len(raw.rstrip(b"\r\n")) > max_bytes):
            yield None, size if ended else size + _skip_line(source)
        else:
            yield (raw.removeprefix(UTF8_BOM) if is_first else raw).strip(b" \t\r\n"), size
        is_first = False


def num_lines(source: BufferedReader, max_bytes: int, enough: int) -> int:
    """The lines of a file that are not blank, counted until there are enough."""
    count = 0
    for line, _ in input_lines(source, max_bytes):
        count += line != b""
        if count >= enough:
            break
    return count


def _skip_line(source: BufferedReader) -> int:
    """Skip the rest of a line, piece by piece. Returns the number of bytes skipped."""
    skipped = 0
    while piece := source.readline(SKIP_BYTES):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped
