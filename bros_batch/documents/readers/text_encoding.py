"""The encoding of a text from its first bytes."""

from __future__ import annotations

import codecs
import re

UTF8 = "utf-8"
WINDOWS_1252 = "windows-1252"
_MARKS = (
    (codecs.BOM_UTF8, UTF8),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Most characters of most tables, delimiters and line breaks among them, are in Latin-1: one byte of two is NUL.
MIN_NUL_SHARE = 0.3
# A few control characters make a text untidy, and many make it no text.
MAX_CONTROLS = 2
MAX_CONTROL_SHARE = 0.02
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def encoding_of(head: bytes, is_whole: bool) -> tuple[str, int] | None:
    """Return the encoding of a text and the length of its byte order mark, or None if the bytes are not text.

    Unless the head is the whole text, its last character may be cut.
    """
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    if b"\0" in head and (utf16 := _utf16_without_mark(head)) is not None:
        return utf16, 0
    if len(_CONTROL.findall(head)) > MAX_CONTROLS + MAX_CONTROL_SHARE * len(head):
        return None
    if _is_mostly_utf8(head, is_whole):
        return UTF8, 0
    try:
        head.decode(WINDOWS_1252)
    except UnicodeDecodeError:
        return None
    return WINDOWS_1252, 0


def _utf16_without_mark(head: bytes) -> str | None:
    even, odd = head[::2].count(0), head[1::2].count(0)
    least = MIN_NUL_SHARE * len(head) / 2
    if odd > least and not even:
        return "utf-16-le"
    if even > least and not odd:
        return "utf-16-be"
    return None


def _is_mostly_utf8(head: bytes, is_whole: bool) -> bool:
    """Whether the text is UTF-8, perhaps with damaged characters.

    Text in another encoding hardly ever has a valid sequence of UTF-8.
    """
    text = codecs.getincrementaldecoder(UTF8)("surrogateescape").decode(head, is_whole)
    if text.isascii():
        return True
    bad = len(_SURROGATE.findall(text))
    return bad == 0 or bad < sum(not char.isascii() for char in text) - bad
