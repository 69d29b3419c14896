"""Reads server-sent events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def event_data(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the data of each event in a stream that arrives in pieces.

    Lines end at line feeds, carriage returns, or both together, and at nothing else: JSON may contain U+2028 and other
    characters at which Python's own line splitting would cut it. Only complete events are yielded.
    """
    data: list[bytes] = []
    for line in _lines(pieces):
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
        elif data:
            yield b"\n".join(data).decode(errors="replace")
            data = []


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    after_return = False
    for piece in pieces:
        if not piece:
            continue
        if after_return:  # the line feed of a carriage return that ended the piece before
            piece = piece.removeprefix(b"\n")
        after_return = piece.endswith(b"\r")
        *lines, rest = (rest + piece).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        yield from lines
