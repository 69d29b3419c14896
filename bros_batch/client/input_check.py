"""Checks the first lines of a job's input, so that common mistakes are reported before the upload."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bros_batch.client.bad_input import BadInput, NoPrompt, NoRows
from bros_batch.client.plain_text import is_text
from bros_batch.document_fields import NO_FIELD, found_field, plain_name
from bros_batch.documents.form import BATCH, ERROR_FIELD, ID_FIELDS, document_id, form_of, is_bad_row
from bros_batch.request_error import RequestError
from bros_batch.text.template import Template, missing_field, parse_template

HEAD_LINES = 100
HEAD_BYTES = 16 * 1024**2
MAX_WARNINGS = 5
MAX_NAMES = 20
UTF8_BOM = b"\xef\xbb\xbf"


def read_head(lines: Iterator[bytes]) -> list[bytes]:
    """Take the first lines: at most HEAD_LINES of them, and about HEAD_BYTES."""
    head: list[bytes] = []
    size = 0
    while len(head) < HEAD_LINES and size < HEAD_BYTES:
        line = next(lines, None)
        if line is None:
            break
        head.append(line)
        size += len(line)
    return head


def check_head(
    head: bytes,
    defaults: Mapping[str, Any],
    id_field: str | None = None,
    word: str = "Line",
    spelled: Callable[[str], str] = str,
) -> list[str]:
    """Check the first lines against the defaults of their job, and return warnings about lines that will fail.

    `word` is what the user calls a line: a line of JSON lines, or a row of another table. `spelled` returns the name of
    an option as the user writes it.

    Raises BadInput if no line is usable, or if the options do not fit the first usable line: a plain document needs a
    prompt; a batch request must have neither a prompt nor any other default.
    """
    template = _template(defaults.get("prompt"), "prompt", spelled)
    system = _template(defaults.get("system"), "system", spelled)
    if len(head) >= HEAD_BYTES:
        head = head[: head.rfind(b"\n") + 1]  # leave a line this long for the server to judge
        if not head:
            return []
    checker = _Checker(defaults, template, system.fields if system else (), id_field, word, spelled)
    for number, line in enumerate(head.removeprefix(UTF8_BOM).split(b"\n"), start=1):
        if line.strip():
            checker.check(line, number)
    if checker.form is None:
        if checker.warnings:
            raise BadInput(checker.warnings[0].removesuffix(FAILS))
        raise NoRows("The file is empty." if word == "Line" else "The table has no rows.")
    more = len(checker.warnings) - MAX_WARNINGS
    shown = checker.warnings[:MAX_WARNINGS]
    return (
        [*shown, f"{more} more of the first {HEAD_LINES} {word.lower()}s have such problems."]
        if more > 0
        else shown
    )


FAILS = " It will count as a failed item."


class _Checker:
    """Checks line after line. The first usable one decides the form of the file, as it does at ingest."""

    def __init__(
        self,
        defaults: Mapping[str, Any],
        template: Template | None,
        system_fields: Sequence[str],
        id_field: str | None,
        word: str,
        spelled: Callable[[str], str],
    ) -> None:
        self.form: str | None = None
        self.warnings: list[str] = []
        self._defaults = defaults
        self._template = template
        self._system_fields = system_fields
        self._id_field = id_field
        self._word = word
        self._spelled = spelled
        self._lines_of_ids: dict[str, int] = {}

    def check(self, line: bytes, number: int) -> None:
        problem, value = _object(line, number)
        if value is None:
            self.warnings.append(problem + FAILS)
            return
        if is_bad_row(value):
            self.warnings.append(value[ERROR_FIELD] + FAILS)
            return
        is_first = self.form is None
        if is_first:
            self.form = form_of(value, self._template.fields if self._template else ())
            self._check_options(value, number)
        try:
            if self.form == BATCH:
                self._check_request(value, number)
            else:
                self._check_document(value, number)
        except BadInput as error:
            if is_first:
                raise
            self.warnings.append(str(error) + FAILS)

    def _check_options(self, value: dict[str, Any], number: int) -> None:
        if self.form == BATCH:
            useless = ["prompt"] if "prompt" in self._defaults else list(self._defaults)
            if useless:
                names = ", ".join(map(self._spelled, useless))
                raise BadInput(f"Line {number} is a batch request with its own parameters; remove {names}.")
            return
        names = ", ".join(map(plain_name, list(value)[:MAX_NAMES])) or "none"
        if self._template is None:
            raise NoPrompt(
                f"Say with {self._spelled('prompt')} what is asked about each row; {{NAME}} stands for the value of a "
                f"column. The columns of {self._word.lower()} {number}: {names}{', ...' * (len(value) > MAX_NAMES)}.",
                f"Summarize: {{{_longest(value)}}}",
            )
        if not self._template.fields:
            raise BadInput(
                f"The {self._spelled('prompt')} contains no {{field}}, so every document would get the same question. "
                f"The fields of {self._word.lower()} {number}: {names}."
            )

    def _check_request(self, value: dict[str, Any], number: int) -> None:
        custom_id = value.get("custom_id")
        if not custom_id:
            raise BadInput(f"Line {number} is a batch request without a custom_id; add one.")
        if not isinstance(custom_id, str):
            raise BadInput(f"Line {number}: 'custom_id' must be a string.")
        first = self._lines_of_ids.setdefault(custom_id, number)
        if first != number:
            self.warnings.append(
                f"Line {number} has the custom_id {custom_id[:80]!r} of line {first}; both will run."
            )

    def _check_document(self, value: dict[str, Any], number: int) -> None:
        assert self._template is not None
        for field in dict.fromkeys([*self._template.fields, *self._system_fields]):
            if found_field(value, field) is NO_FIELD:
                raise BadInput(f"{self._word} {number}: {missing_field(field, value)}")
        if self._id_field is not None and self._id_field not in value:
            user = f"The {self._spelled('id_field')}"
            raise BadInput(f"{self._word} {number}: {missing_field(self._id_field, value, user)}")
        try:
            document_id(value, ID_FIELDS if self._id_field is None else (self._id_field,))
        except RequestError as error:
            raise BadInput(f"{self._word} {number}: {error.message}") from None


def _longest(document: Mapping[str, Any]) -> str:
    """The column with the longest text, which probably is what a prompt is about."""
    lengths = {plain_name(name): len(value) for name, value in document.items() if isinstance(value, str)}
    return (
        max(lengths, key=lambda name: lengths[name]) if lengths else next(map(plain_name, document), "text")
    )


def _template(source: str | None, name: str, spelled: Callable[[str], str]) -> Template | None:
    if source is None:
        return None
    if name == "prompt" and not source.strip():
        raise BadInput(f"The {spelled(name)} is empty.")
    try:
        return parse_template(source)
    except RequestError as error:
        problem = f"{error.message[:1].lower()}{error.message[1:]}"
        raise BadInput(f"The {spelled(name)} is not usable: {problem}") from None


def _object(line: bytes, number: int) -> tuple[str, dict[str, Any] | None]:
    try:
        value = json.loads(line.decode(), parse_constant=_reject_constant, parse_float=_finite)
    except UnicodeDecodeError:
        return f"Line {number} is not UTF-8 text.", None
    except RecursionError:
        return f"Line {number} is nested too deeply.", None
    except _OutOfRange as error:
        return f"Line {number} contains the number {error}, which is out of range.", None
    except ValueError as error:
        if str(error).startswith("Exceeds the limit"):  # of the digits that Python converts
            return f"Line {number} contains a number that is out of range.", None
        message = getattr(error, "msg", str(error))
        return (
            f"Line {number} is not JSON ({message[:1].lower()}{message[1:]}); each line must be a JSON object.",
            None,
        )
    if b"\\u" in line and not is_text(json.dumps(value, ensure_ascii=False)):
        return f"Line {number} contains half of a surrogate pair, such as \\ud83d without \\ude00.", None
    if not isinstance(value, dict):
        return f'Line {number} is JSON, but not an object like {{"text": "..."}}.', None
    return "", value


class _OutOfRange(ValueError):
    """A number that no float can hold. Ingest rejects it too."""


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _OutOfRange(digits[:40])
    return number


def _reject_constant(name: str) -> None:
    raise ValueError(f"the value {name} is not in JSON")
