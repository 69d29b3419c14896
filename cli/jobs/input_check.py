"""Checks the first lines of an input file, so that common mistakes are reported before the upload."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import IO, Any

from bros_batch.documents.form import BATCH, document_id, form_of
from bros_batch.request_error import RequestError
from bros_batch.text.template import Template, missing_field, parse_template
from cli.text_options import is_text

HEAD_LINES = 100
HEAD_BYTES = 16 * 1024**2
MAX_WARNINGS = 5
UTF8_BOM = b"\xef\xbb\xbf"
# The first bytes of files that are no text, with what they are and what to do.
FOREIGN_FORMATS = (
    (b"\x1f\x8b", "compressed (gzip); unpack it first: gunzip -c FILE | bros-batch submit -"),
    (b"BZh", "compressed (bzip2); unpack it first: bunzip2 -c FILE | bros-batch submit -"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd); unpack it first: zstd -dc FILE | bros-batch submit -"),
    (b"PK\x03\x04", "a zip archive or an Office document; save it as JSON lines, one object per line"),
    (b"PAR1", "a Parquet file; save it as JSON lines: df.to_json(FILE, orient='records', lines=True)"),
    (b"%PDF", "a PDF document; extract its text and save it as JSON lines, one object per line"),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
)
ARRAY_HINT = "; if the file is one array, convert it with jq -c '.[]'"


class BadInput(ValueError):
    """The file cannot become a job; the message says what is wrong and in which line."""


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


def check_head(
    head: bytes, prompt: str | None, other_flags: Sequence[str] = (), system: str | None = None
) -> list[str]:
    """Check the first lines against the options, and return warnings about lines that will fail or be renamed.

    Raises BadInput if no line is usable, or if the options do not fit the first usable line: a plain document needs a
    prompt; a batch request must have neither a prompt nor any of `other_flags`.
    """
    template = _template(prompt, "--prompt")
    system_fields = parsed.fields if (parsed := _template(system, "--system")) else ()
    _check_format(head)
    if len(head) >= HEAD_BYTES:
        head = head[: head.rfind(b"\n") + 1]  # leave a line this long for the server to judge
        if not head:
            return []
    checker = _Checker(prompt, template, other_flags, system_fields)
    for number, line in enumerate(head.removeprefix(UTF8_BOM).split(b"\n"), start=1):
        if line.strip():
            checker.check(line, number)
    if checker.form is None:
        raise BadInput(checker.warnings[0].removesuffix(FAILS) if checker.warnings else "The file is empty.")
    more = len(checker.warnings) - MAX_WARNINGS
    shown = checker.warnings[:MAX_WARNINGS]
    return [*shown, f"{more} more of the first {HEAD_LINES} lines have such problems."] if more > 0 else shown


FAILS = " It will count as a failed item."


class _Checker:
    """Checks line after line. The first usable one decides the form of the file, as it does at ingest."""

    def __init__(
        self,
        prompt: str | None,
        template: Template | None,
        other_flags: Sequence[str],
        system_fields: Sequence[str],
    ) -> None:
        self.form: str | None = None
        self.warnings: list[str] = []
        self._prompt = prompt
        self._template = template
        self._other_flags = other_flags
        self._system_fields = system_fields
        self._lines_of_ids: dict[str, int] = {}

    def check(self, line: bytes, number: int) -> None:
        problem, value = _object(line, number)
        if value is None:
            self.warnings.append(problem + FAILS)
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
            useless = ["--prompt"] if self._prompt is not None else self._other_flags
            if useless:
                raise BadInput(
                    f"Line {number} is a batch request with its own parameters; remove {', '.join(useless)}."
                )
            return
        names = ", ".join(list(value)[:8]) or "none"
        if self._template is None:
            raise BadInput(
                f"Line {number} is a plain document (its fields: {names}); "
                'add a prompt, such as --prompt "Summarize: {text}".'
            )
        if not self._template.fields:
            raise BadInput(
                "The --prompt contains no {field}, so every document would get the same question. "
                f"The fields of line {number}: {names}."
            )

    def _check_request(self, value: dict[str, Any], number: int) -> None:
        custom_id = value.get("custom_id")
        if not custom_id:
            raise BadInput(f"Line {number} is a batch request without a custom_id; add one.")
        if not isinstance(custom_id, str):
            raise BadInput(f"Line {number}: 'custom_id' must be a string.")
        first = self._lines_of_ids.setdefault(custom_id, number)
        if first != number:
            raise BadInput(f"Line {number} has the custom_id {custom_id[:80]!r} of line {first}.")

    def _check_document(self, value: dict[str, Any], number: int) -> None:
        assert self._template is not None
        for field in dict.fromkeys([*self._template.fields, *self._system_fields]):
            if field not in value:
                raise BadInput(f"Line {number}: {missing_field(field, value)}")
        try:
            given = document_id(value)
        except RequestError as error:
            raise BadInput(f"Line {number}: {error.message}") from None
        if given is None:
            return
        first = self._lines_of_ids.setdefault(given, number)
        if first != number:
            self.warnings.append(
                f"Line {number} has the id {given[:80]!r} of line {first}; "
                f"its result will have the id '{given[:80]}:line-{number}'."
            )


def _template(source: str | None, flag: str) -> Template | None:
    if source is None:
        return None
    if flag == "--prompt" and not source.strip():
        raise BadInput("The --prompt is empty.")
    try:
        return parse_template(source)
    except RequestError as error:
        raise BadInput(f"The {flag} is not usable: {error.message[:1].lower()}{error.message[1:]}") from None


def _check_format(head: bytes) -> None:
    for start, kind in FOREIGN_FORMATS:
        if head.startswith(start):
            raise BadInput(f"The file is {kind}.")


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
        array = ARRAY_HINT if line.strip() == b"[" else ""
        return (
            f"Line {number} is not JSON ({message[:1].lower()}{message[1:]}); each line must be a JSON object"
            f"{array}.",
            None,
        )
    if b"\\u" in line and not is_text(json.dumps(value, ensure_ascii=False)):
        return f"Line {number} contains half of a surrogate pair, such as \\ud83d without \\ude00.", None
    if not isinstance(value, dict):
        array = ARRAY_HINT if isinstance(value, list) else ""
        return f'Line {number} is JSON, but not an object like {{"text": "..."}}{array}.', None
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
