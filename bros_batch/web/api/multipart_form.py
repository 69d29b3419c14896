"""Incremental parser of a multipart form with one file."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from bros_batch.web.errors import ApiError

MAX_FIELD_BYTES = 64 * 1024
MAX_FIELDS = 32
MAX_HEADER_BYTES = 16 * 1024


@dataclass(slots=True)
class Part:
    """The part of the form that is being parsed."""

    headers: dict[str, str] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    value: bytearray = field(default_factory=bytearray)


class FormReader:
    """Collects the fields of a form in `fields`, and new data of its one file in `pending`.

    All errors of the form are raised as ApiError 400.
    """

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.pending: list[bytes] = []
        self.pending_bytes = 0
        self.complete = False
        self._part = Part()
        self._header = bytearray()
        self._value = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._on_end,
            },
        )

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise ApiError(400, f"The form is not valid: {error}.", code="invalid_request") from None

    def _begin(self) -> None:
        self._part = Part()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header) + len(self._value) > MAX_HEADER_BYTES:
            raise ApiError(400, "A header of the form is too long.", code="invalid_request")

    def _on_header_end(self) -> None:
        self._part.headers[self._header.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._part.headers.get("content-disposition", ""))
        self._part.name = options.get(b"name", b"").decode(errors="replace")
        if b"filename" in options:
            self._part.filename = options[b"filename"].decode(errors="replace")
        if self._part.name == "file":
            if self.filename is not None:
                raise ApiError(400, "The form has more than one file.", param="file", code="invalid_request")
            self.filename = _plain(self._part.filename or "") or "file"
        elif len(self.fields) >= MAX_FIELDS:
            raise ApiError(400, "The form has too many fields.", code="invalid_request")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == "file":
            self.pending.append(data[start:end])
            self.pending_bytes += end - start
            return
        self._part.value += data[start:end]
        if len(self._part.value) > MAX_FIELD_BYTES:
            name = self._part.name
            raise ApiError(400, f"The form field '{name}' is too long.", param=name, code="invalid_request")

    def _end(self) -> None:
        if self._part.name != "file":
            self.fields[self._part.name] = self._part.value.decode(errors="replace")

    def _on_end(self) -> None:
        self.complete = True


def _plain(name: str) -> str:
    """Return a file name without control characters, and no longer than file systems allow."""
    return "".join(filter(str.isprintable, name))[:255]
