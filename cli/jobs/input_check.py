"""Checks the first lines of an input file, so that common mistakes are reported before the upload."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import IO

from bros_batch.text.template import template_fields

HEAD_LINES = 100
HEAD_BYTES = 16 * 1024**2


class BadInput(ValueError):
    """The file cannot become a job; the message says what is wrong and in which line."""


class HeadedStream(io.RawIOBase):
    """Replays a head that was already read, then the rest of the stream, and passes the size of each read to `on_read`.

    With `size`, the length of the file, it returns exactly that many bytes, even if the file grows meanwhile, and has a
    `fileno`, from which the HTTP client learns the length of its request.
    """

    def __init__(
        self, head: bytes, rest: IO[bytes], on_read: Callable[[int], None], size: int | None = None
    ) -> None:
        self._head = memoryview(head)
        self._rest = rest
        self._on_read = on_read
        self._size = size
        self._left = size

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._size is None:
            raise io.UnsupportedOperation("the length is unknown")
        return self._rest.fileno()

    def read(self, size: int = -1) -> bytes:
        if self._left is not None:
            size = self._left if size < 0 else min(size, self._left)
        if self._head:
            end = len(self._head) if size < 0 else size
            piece, self._head = bytes(self._head[:end]), self._head[end:]
        else:
            piece = self._rest.read(size)
        if self._left is not None:
            self._left -= len(piece)
        self._on_read(len(piece))
        return piece


def read_head(source: IO[bytes]) -> bytes:
    """Read the first lines: at most HEAD_LINES lines and HEAD_BYTES bytes."""
    lines: list[bytes] = []
    size = 0
    while len(lines) < HEAD_LINES and size < HEAD_BYTES:
        line = source.readline(HEAD_BYTES - size)
        if not line:
            break
        lines.append(line)
        size += len(line)
    return b"".join(lines)


def check_head(head: bytes, prompt: str | None, other_flags: Sequence[str] = ()) -> list[str]:
    """Check the first usable line against the options, and return warnings about the unusable lines before it.

    Raises BadInput if no line is usable, or if the options do not fit the first usable line: a plain document needs a
    prompt; a batch request must have neither a prompt nor any of `other_flags`.
    """
    if prompt is not None and not prompt.strip():
        raise BadInput("The --prompt is empty.")
    if len(head) >= HEAD_BYTES:
        head = head[: head.rfind(b"\n") + 1]  # leave a line this long for the server to judge
        if not head:
            return []
    problems: list[str] = []
    for number, line in enumerate(head.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        problem, value = _object(line, number)
        if value is None:
            problems.append(problem)
            continue
        _check_line(value, number, prompt, other_flags)
        return problems
    raise BadInput(problems[0] if problems else "The file is empty.")


def _object(line: bytes, number: int) -> tuple[str, dict[str, object] | None]:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return f"Line {number} is not UTF-8 text.", None
    except ValueError as error:
        message = getattr(error, "msg", str(error))
        return (
            f"Line {number} is not JSON ({message[:1].lower()}{message[1:]}); each line must be a JSON object.",
            None,
        )
    if not isinstance(value, dict):
        return f'Line {number} is JSON, but not an object like {{"text": "..."}}.', None
    return "", value


def _check_line(
    value: dict[str, object], number: int, prompt: str | None, other_flags: Sequence[str]
) -> None:
    is_request = "body" in value and ("url" in value or "method" in value)
    if is_request:
        useless = ["--prompt"] if prompt is not None else other_flags
        if useless:
            raise BadInput(
                f"Line {number} is a batch request with its own parameters; remove {', '.join(useless)}."
            )
        if not value.get("custom_id"):
            raise BadInput(f"Line {number} is a batch request without a custom_id; add one.")
        return
    names = ", ".join(list(value)[:8]) or "none"
    if prompt is None:
        raise BadInput(
            f"Line {number} is a plain document (its fields: {names}); "
            'add a prompt, such as --prompt "Summarize: {text}".'
        )
    fields = template_fields(prompt)
    if not fields:
        raise BadInput("The --prompt contains no {field}, so every document would get the same question.")
    for field in fields:
        if field not in value:
            raise BadInput(
                f"The --prompt uses {{{field}}}, which line {number} does not have (its fields: {names})."
            )
