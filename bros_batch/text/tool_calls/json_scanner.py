"""JSON whose text arrives in pieces: where a value ends, and the name and the arguments in a tool call's object."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container

SPACE = " \t\r\n"
NAME_KEYS = ("name", "function")
ARGUMENT_KEYS = ("arguments", "parameters")
OTHER_KEYS = ("type", "id")

_IN_STRING = re.compile(r'["\\\x00-\x1f]')
_OUTSIDE = re.compile(r'["{}\[\]]')
_AFTER_SCALAR = re.compile(r"[\s,;}\]]")


def skip_space(text: str, at: int) -> int:
    """Return the index of the first character of `text` from `at` on that is not white space."""
    while at < len(text) and text[at] in SPACE:
        at += 1
    return at


class ValueScanner:
    """Finds the end of a value by its quotes and brackets; whether the value is valid JSON is up to its reader.

    `take` returns what was read. Line breaks and other control characters in strings, which models write although JSON
    does not allow them, are escaped in it.
    """

    __slots__ = ("_depth", "_escaped", "_in_string", "_is_begun", "_read", "done")

    def __init__(self) -> None:
        self._is_begun = False
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._read: list[str] = []
        self.done = False

    def take(self) -> str:
        """Return the text that was read since the last time."""
        taken = "".join(self._read)
        self._read.clear()
        return taken

    def push(self, text: str, at: int) -> int:
        """Return the index at which the part of the value in `text`, from `at` on, ends."""
        if not self._is_begun and at < len(text):
            self._is_begun = True
            if text[at] not in '"{[':
                self._depth = -1  # a number or a word
        if self._depth < 0:
            match = _AFTER_SCALAR.search(text, at)
            self.done = match is not None
            end = match.start() if match else len(text)
            self._read.append(text[at:end])
            return end
        while at < len(text) and not self.done:
            has_backslash = self._escaped
            end = self._skip_in_string(text, at) if self._in_string else self._skip_outside(text, at)
            is_control = self._in_string and text[end - 1] < " "
            if is_control:
                escape = json.dumps(text[end - 1])[1:-1]
                self._read += text[at : end - 1], escape[1:] if has_backslash else escape
            else:
                self._read.append(text[at:end])
            at = end
        return at

    def _skip_in_string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        match = _IN_STRING.search(text, at)
        if match is None:
            return len(text)
        if match[0] == "\\":
            self._escaped = True
        elif match[0] == '"':
            self._in_string = False
            self.done = self._depth == 0
        return match.end()

    def _skip_outside(self, text: str, at: int) -> int:
        match = _OUTSIDE.search(text, at)
        if match is None:
            return len(text)
        if match[0] == '"':
            self._in_string = True
        elif match[0] in "{[":
            self._depth += 1
        else:
            self._depth -= 1
            self.done = self._depth <= 0
        return match.end()


class CallObject:
    """Reads one call from an object such as `{"name": "f", "arguments": {...}}`.

    The arguments are text: they are passed on as the model writes them. `is_call` is set when the name is known and the
    arguments have begun, or the object has ended; `failed` when it is certain that the object is not a call, or that
    a call is broken. With `names`, an object that has other keys before, or names something else, is not a call.
    """

    def __init__(self, names: Container[str] | None = None) -> None:
        self.name: str | None = None
        self.is_call = False
        self.done = False
        self.failed = False
        self._names = names
        self._num_wrappers = 0
        self._key = ""
        self._value = ValueScanner()
        self._text: list[str] = []
        self._streams = False
        self._has_arguments = False
        self._arguments: list[str] = []
        self._step: Callable[[str, int], int] = self._open

    def push(self, text: str, at: int = 0) -> int:
        """Read on, and return the index in `text` at which the object ends or stops being a call."""
        while not (self.done or self.failed):
            at = at if self._step in (self._in_key, self._in_value) else skip_space(text, at)
            if at >= len(text):
                break
            at = self._step(text, at)
        return at

    def take(self) -> str:
        """Return the arguments that were read since the last time."""
        taken = "".join(self._arguments)
        self._arguments.clear()
        return taken

    def _open(self, text: str, at: int) -> int:
        return self._expect(text, at, "{", self._before_key)

    def _before_key(self, text: str, at: int) -> int:
        if text[at] == "}":
            return self._close(at)
        if text[at] != '"':
            self.failed = True
            return at
        self._begin()
        self._step = self._in_key
        return at

    def _in_key(self, text: str, at: int) -> int:
        end = self._scan(text, at)
        if self._value.done:
            key = _decoded("".join(self._text))
            self._key = key if isinstance(key, str) else ""
            known = self._key in (*NAME_KEYS, *ARGUMENT_KEYS, *OTHER_KEYS)
            self.failed = self._names is not None and not known and not self.is_call
            self._step = self._colon
        return end

    def _colon(self, text: str, at: int) -> int:
        return self._expect(text, at, ":", self._before_value)

    def _before_value(self, text: str, at: int) -> int:
        if self._key == "function" and text[at] == "{":
            self._num_wrappers += 1
            self._step = self._before_key
            return at + 1
        self._begin()
        self._streams = self._key in ARGUMENT_KEYS and text[at] == "{"
        if self._key in ARGUMENT_KEYS and self._has_arguments:
            self.failed = True
        elif self._streams:
            self._begin_arguments()
        self._step = self._in_value
        return at

    def _begin_arguments(self) -> None:
        self._has_arguments = True
        self.is_call |= self.name is not None

    def _in_value(self, text: str, at: int) -> int:
        end = self._scan(text, at)
        if self._streams:
            self._arguments += self._text
            self._text.clear()
        if self._value.done:
            if not self._streams:
                self._keep(_decoded("".join(self._text)))
            self._step = self._after_value
        return end

    def _after_value(self, text: str, at: int) -> int:
        return self._close(at) if text[at] == "}" else self._expect(text, at, ",", self._before_key)

    def _close(self, at: int) -> int:
        if self._num_wrappers:
            self._num_wrappers -= 1
            self._step = self._after_value
            return at + 1
        self.failed = self.name is None
        self.done = self.is_call = not self.failed
        if not self._has_arguments:
            self._arguments.append("{}")
        return at + 1

    def _keep(self, value: object) -> None:
        """Take in a value that is not an object."""
        if self._key in NAME_KEYS and not self.is_call:
            if isinstance(value, str) and value and (self._names is None or value in self._names):
                self.name = _without_surrogates(value)
                self.is_call = self._has_arguments
            else:
                self.failed = True
        elif self._key in ARGUMENT_KEYS:
            # Some models write the arguments as a string that holds JSON, or null for none.
            text = "{}" if value is None or value == "" else value
            if isinstance(text, str) and _is_object(text):
                self._begin_arguments()
                self._arguments.append(_without_surrogates(text))
            else:
                self.failed = True

    def _begin(self) -> None:
        self._value = ValueScanner()
        self._text.clear()

    def _scan(self, text: str, at: int) -> int:
        end = self._value.push(text, at)
        self._text.append(self._value.take())
        return end

    def _expect(self, text: str, at: int, wanted: str, then: Callable[[str, int], int]) -> int:
        if text[at] != wanted:
            self.failed = True
            return at
        self._step = then
        return at + 1


def _decoded(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _without_surrogates(text: str) -> str:
    """Return `text` as it can be sent: JSON can name halves of characters, which UTF-8 cannot."""
    return text.encode(errors="replace").decode()
