"""Incremental parser of a multipart form with one file."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from bros_batch.request_error import RequestError

MAX_FIELD_BYTES = 64 * 1024  # all fields together
MAX_FIELDS = 32
MAX_HEADER_BYTES = 16 * 1024  # all headers of a part together


@dataclass(slots=True)
class Part:
    """The part of the form that is being parsed."""

    headers: dict[str, str] = field(default_factory=dict)
    name: str = ""
    value: bytearray = field(default_factory=bytearray)


class FormReader:
    """Parses a form as it arrives: collects its fields, and hands on the data of its one file.

    Raises RequestError for an invalid form.
    """

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.num_pending_bytes = 0
        self.complete = False
        self._pending: list[bytes] = []
        self._part = Part()
        self._header = bytearray()
        self._value = bytearray()
        self._num_header_bytes = 0
        self._num_field_bytes = 0
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
        """Parse the next bytes of the form."""
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise RequestError(f"The form is not valid: {error}.") from None

    def take_file_data(self) -> list[bytes]:
        """Return the data of the file that has arrived since the last call."""
        data, self._pending = self._pending, []
        self.num_pending_bytes = 0
        return data

    def _begin(self) -> None:
        self._part = Part()
        self._num_header_bytes = 0

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._count_header(end - start)

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count_header(end - start)

    def _count_header(self, num_bytes: int) -> None:
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > MAX_HEADER_BYTES:
            raise RequestError("The headers of a part of the form are too long.")

    def _on_header_end(self) -> None:
        self._part.headers[self._header.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._part.headers.get("content-disposition", ""))
        self._part.name = options.get(b"name", b"").decode(errors="replace")
        if self._part.name == "file":
            if self.filename is not None:
                raise RequestError("The form has more than one file.", "file")
            self.filename = _plain(options.get(b"filename", b"").decode(errors="replace")) or "file"
        elif len(self.fields) >= MAX_FIELDS:
            raise RequestError("The form has too many fields.")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == "file":
            self._pending.append(data[start:end])
            self.num_pending_bytes += end - start
            return
        self._part.value += data[start:end]
        self._num_field_bytes += end - start
        if self._num_field_bytes > MAX_FIELD_BYTES:
            name = self._part.name
            raise RequestError(f"The form field '{name}' is too long.", name)

    def _end(self) -> None:
        if self._part.name != "file":
            self.fields[self._part.name] = self._part.value.decode(errors="replace")

    def _on_end(self) -> None:
        self.complete = True


def _plain(name: str) -> str:
    """Return a file name without control characters, and no longer than file systems allow."""
    return "".join(filter(str.isprintable, name))[:255]
