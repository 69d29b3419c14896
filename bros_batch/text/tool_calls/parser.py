"""Finds the tool calls in the text of an output while the text is still growing."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from bros_batch.text.partial_match import num_begun_chars
from bros_batch.text.tool_calls.formats import CallFormat
from bros_batch.text.tool_calls.json_scanner import SPACE, CallObject, ValueScanner, skip_space

MAX_NAME_CHARS = 256
MAX_HEAD_CHARS = MAX_NAME_CHARS + 64
# What precedes the arguments in the form that begins with the name.
HEAD = re.compile(r"(.+?)\s*(?:\[CALL_ID\][\w\s-]*)?(?:\[ARGS\]\s*)?", re.DOTALL)
LIKE_A_NAME = re.compile(rf"[\w.:/-]{{1,{MAX_NAME_CHARS}}}")
BETWEEN_CALLS = SPACE + ",;]}"  # and brackets that models write once too often


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A part of call number `index`: its name in the first part, then pieces of its arguments, which are JSON."""

    index: int
    name: str | None
    arguments: str


@dataclass(slots=True)
class Parsed:
    """What can be shown in addition: text outside of calls, and parts of calls."""

    text: str = ""
    calls: list[CallPiece] = field(default_factory=list)


class CallParser:
    """Splits an output into text and calls.

    What looks like a call and turns out not to be one is text. White space around calls is dropped. Whether the text
    comes whole or in pieces makes no difference to what `push` returns in total. Calls beyond `max_calls`
    are dropped.
    """

    def __init__(self, form: CallFormat, names: Container[str], max_calls: int | None = None) -> None:
        self._form = form
        self._names = names
        self._bare_names = names if form.is_bare else None
        self._max_calls = max_calls
        self.num_calls = 0
        self._rest = ""
        self._space = ""  # white space at the end of the text, which is dropped if a call follows
        self._is_after_call = False
        self._raw = ""  # the text of what may become a call
        self._is_begun = False
        self._call = CallObject()
        self._value = ValueScanner()
        self._final = False
        self._out = Parsed()
        self._step: Callable[[], bool] = self._start if form.is_bare else self._text

    def push(self, text: str, final: bool = False) -> Parsed:
        """Append `text`, after which no more follows if it is `final`, and return what can be shown in addition."""
        self._rest += text
        self._final = final
        while self._step():
            pass
        out, self._out = self._out, Parsed()
        if final and not self.num_calls:
            out.text += self._space
        return out

    # Each step consumes some of the rest, and returns false if it cannot go on without more text.

    def _start(self) -> bool:
        """At the beginning of an output that may be a call without an opening."""
        at = skip_space(self._rest, 0)
        if at == len(self._rest) and not self._final:
            return False
        if self._rest[at : at + 1] in ("{", "["):
            self._raw, self._rest = self._rest[:at], self._rest[at:]
            self._step = self._head
        else:
            self._step = self._text
        return True

    def _text(self) -> bool:
        opening, rest = self._form.opening, self._rest
        if opening is not None and (found := rest.find(opening)) >= 0:
            self._say(rest[:found])
            self._rest = rest[found + len(opening) :]
            # A special token that opens a call is no text, should no call follow.
            self._raw = "" if opening.startswith(("[", "<|")) else opening
            self._step = self._head
            return True
        held = 0 if opening is None or self._final else num_begun_chars(rest, opening)
        self._say(rest[: len(rest) - held])
        self._rest = rest[len(rest) - held :]
        return False

    def _head(self) -> bool:
        """After an opening: a call, or a list of calls."""
        at = skip_space(self._rest, 0)
        self._consume(at)
        if not self._rest:
            return self._give_up() if self._final else False
        if self._rest[0] == "{":
            self._begin_object()
        elif self._rest[0] == "[" and self._raw.rstrip()[-1:] != "[":
            self._consume(1)
        elif self._form.has_named_form and self._rest[0] not in "[]":
            self._step = self._name
        else:
            return self._give_up()
        return True

    def _name(self) -> bool:
        """The form of a call that begins with its name: up to `[ARGS]`, or to the arguments."""
        end = self._rest.find("{")
        if end < 0 and not self._final and len(self._rest) <= MAX_HEAD_CHARS:
            return False
        head = HEAD.fullmatch(self._rest, 0, end) if 0 < end <= MAX_HEAD_CHARS else None
        name = "" if head is None else head[1]
        if name not in self._names and not LIKE_A_NAME.fullmatch(name):
            return self._give_up()
        self._consume(end)
        self._begin_call(name)
        self._value = ValueScanner()
        self._step = self._arguments
        return True

    def _arguments(self) -> bool:
        end = self._value.push(self._rest, 0)
        self._add(self._value.take())
        self._rest = self._rest[end:]
        if self._value.done:
            self._step = self._after
        return self._value.done

    def _object(self) -> bool:
        call = self._call
        self._consume(call.push(self._rest))
        if call.is_call and not self._is_begun:
            self._begin_call(call.name or "")
        if self._is_begun:
            self._add(call.take())
            if call.done or call.failed:
                self._step = self._after
                return True
            return False
        return self._give_up() if call.failed or self._final else False

    def _after(self) -> bool:
        """After a call: its closing, another call, or text."""
        self._raw = ""
        self._rest = self._rest.lstrip(BETWEEN_CALLS)
        closing = self._form.closing or ""
        if self._rest.startswith("{"):
            self._begin_object()
            return True
        if not self._rest or (len(self._rest) < len(closing) and closing.startswith(self._rest)):
            if self._final:
                self._rest = ""
            return False
        self._rest = self._rest.removeprefix(closing)
        self._step = self._text
        return bool(self._rest)

    def _begin_object(self) -> None:
        self._call = CallObject(self._bare_names)
        self._is_begun = False
        self._step = self._object

    def _begin_call(self, name: str) -> None:
        self._is_begun = True
        self._is_after_call = True
        self._space = ""
        self._raw = ""
        self.num_calls += 1
        self._emit(CallPiece(self.num_calls - 1, name, ""))

    def _add(self, arguments: str) -> None:
        if arguments:
            self._emit(CallPiece(self.num_calls - 1, None, arguments))

    def _emit(self, piece: CallPiece) -> None:
        if self._max_calls is None or piece.index < self._max_calls:
            self._out.calls.append(piece)

    def _consume(self, num_chars: int) -> None:
        self._raw += self._rest[:num_chars]
        self._rest = self._rest[num_chars:]

    def _give_up(self) -> bool:
        """Show as text what was taken for the beginning of a call."""
        self._say(self._raw)
        self._raw = ""
        self._step = self._text
        return True

    def _say(self, text: str) -> None:
        if self._is_after_call:
            text = text.lstrip(SPACE)
            if not text:
                return
            self._is_after_call = False
        text = self._space + text
        shown = text.rstrip(SPACE)
        self._space = text[len(shown) :]
        self._out.text += shown
