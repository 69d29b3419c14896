"""The lines of a text in any encoding, in bounded memory."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO

from bros_batch.documents.readers.table import UnreadableTable
from bros_batch.documents.readers.text_encoding import UTF8, WINDOWS_1252, encoding_of

READ_BYTES = 1024**2
MAX_LINE_CHARS = 64 * 1024**2


class DecodedText:
    """Decodes a stream. Bytes that are not text in its encoding become surrogates, and `has_surrogates` is set then.

    So a caller looks for surrogates in its rows only after there may be some. A text that is ASCII for as long as it
    could be UTF-8, and then is not, turns out to be in Windows-1252.
    """

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self.has_surrogates = False
        self._may_be_1252 = encoding == UTF8
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._fallback = "surrogatepass" if encoding.startswith("utf-16") else "surrogateescape"

    def lines(self) -> Iterator[str]:
        """Yield lines with their ends: LF, CR LF or CR. Other characters that Python counts as line ends are text."""
        rest = ""
        for text in self.pieces():
            text = rest + text
            held = len(text) - 1 if text.endswith("\r") else len(text)  # LF may follow
            rest = ""
            for line in io.StringIO(text[:held], newline=""):
                if line.endswith(("\n", "\r")):
                    yield line
                else:
                    rest = line
            rest += text[held:]
            if len(rest) > MAX_LINE_CHARS:
                raise UnreadableTable(f"A line has more than {MAX_LINE_CHARS:,} characters.")
        if rest:
            yield rest

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces of about READ_BYTES."""
        while data := self._stream.read(READ_BYTES):
            yield self._decoded(data)
        yield self._decoded(b"", final=True)

    def _decoded(self, data: bytes, final: bool = False) -> str:
        try:
            text = self._decoder.decode(data, final)
            self._may_be_1252 = self._may_be_1252 and text.isascii()
            return text
        except UnicodeDecodeError:
            held = self._decoder.getstate()[0] + data
            if self._may_be_1252 and encoding_of(held, final) == (WINDOWS_1252, 0):
                self._decoder = codecs.getincrementaldecoder(WINDOWS_1252)("strict")
                return self._decoder.decode(held, final)
            self.has_surrogates = True
        self._decoder.errors = self._fallback
        try:
            return self._decoder.decode(data, final)  # nothing of the data was consumed
        except UnicodeDecodeError:  # half a character at the end
            self._decoder.errors = "replace"
            return self._decoder.decode(data, final)
        finally:
            self._decoder.errors = "strict"
