"""Reading one line of an input file: a batch line, a document, or an error message. Pure."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from bros_batch.documents.alike_requests import AlikeRequests
from bros_batch.documents.error_messages import storable
from bros_batch.documents.form import (
    BATCH,
    DOCUMENT,
    ERROR_FIELD,
    ID_FIELDS,
    checked_id,
    document_id,
    form_of,
    is_bad_row,
)
from bros_batch.documents.item_requests import without_stream
from bros_batch.documents.json_object import json_object
from bros_batch.documents.new_item import NewItem
from bros_batch.model_names import ModelNames
from bros_batch.openai_api.registry import endpoint_at, parse_body
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.openai_api.validation import check_strict
from bros_batch.request_error import RequestError

MAX_IGNORED = 32


class BatchLine(msgspec.Struct):
    """OpenAI's batch line. The body stays undecoded, because its own parser checks it."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


_decode_batch_line = msgspec.json.Decoder(BatchLine).decode


class LineReader:
    """Reads the lines of one file. The first good line decides the form of all of them.

    `prompt_fields` are the fields of the job's own prompt. `id_field` is the field with the id of a document. Without
    `models`, batch lines run with the job's model, whichever they name. `ignored` collects the names of fields without
    effect, unless `strict` makes those that are not known an error of their line.
    """

    def __init__(
        self,
        endpoint: str,
        models: ModelNames | None,
        form: str | None,
        prompt_fields: Collection[str] = (),
        *,
        id_field: str | None = None,
        strict: bool = False,
    ) -> None:
        self.form = form
        self.ignored: set[str] = set()
        self._id_fields = ID_FIELDS if id_field is None else (id_field,)
        self._strict = strict
        self._endpoint = endpoint
        self._alike = AlikeRequests(endpoint_at(endpoint))
        self._checked: ServedRequest | None = None
        self._models = models
        self._prompt_fields = prompt_fields

    def read(self, line: bytes, line_no: int) -> NewItem:
        """The item that a line becomes: pending, or failed with a message that names the line."""
        try:
            if self.form == BATCH:
                return self._read_batch_line(line, line_no)
            if self.form == DOCUMENT:
                return self._read_document(line, line_no)
            value = json_object(line)
            if is_bad_row(value):
                return self._read_document(line, line_no)  # says nothing about the form of the others
            form = form_of(value, self._prompt_fields)
            item = (self._read_batch_line if form == BATCH else self._read_document)(line, line_no)
            self.form = form
            return item
        except RequestError as error:
            return _failed(line_no, None, error)

    def _read_batch_line(self, line: bytes, line_no: int) -> NewItem:
        try:
            batch_line = _decode_batch_line(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _failed_envelope(line, line_no)
        custom_id = checked_id(batch_line.custom_id)
        try:
            return NewItem(line_no, custom_id, self._checked_body(batch_line))
        except RequestError as error:
            return _failed(line_no, custom_id, error)

    def _checked_body(self, batch_line: BatchLine) -> str:
        """The body of the line, exactly as it is in the file."""
        if batch_line.method != "POST":
            raise RequestError(f"'method' must be 'POST', not {batch_line.method[:80]!r}.", "method")
        if batch_line.url != self._endpoint:
            raise RequestError(
                f"'url' must be the batch's {self._endpoint!r}, not {batch_line.url[:80]!r}.", "url"
            )
        body = _text(bytes(batch_line.body))
        request = self._alike.of_plain(body)
        if request is None:
            self._check(parse_body(self._endpoint, body))
        elif request is not self._checked:  # most lines have all but their prompts in common
            self._check(request)
            self._checked = request
        return body

    def _check(self, request: ServedRequest) -> None:
        """Raise RequestError if the request of a line cannot run in this job, and note what it has in vain."""
        without_stream(request)
        if self._strict:
            check_strict(request)
        if len(self.ignored) < MAX_IGNORED:
            self.ignored.update(request.ignored_names())
        if self._models is not None:
            self._models.resolve(request.model, in_file=True)

    def _read_document(self, line: bytes, line_no: int) -> NewItem:
        document = json_object(line)
        if is_bad_row(document):
            message = storable(document[ERROR_FIELD])
            custom_id = document_id(document, ("custom_id",))
            return NewItem(line_no, custom_id or str(line_no), None, "invalid_request", message)
        custom_id = document_id(document, self._id_fields)
        return NewItem(line_no, custom_id or str(line_no), _text(line))


def _failed(line_no: int, custom_id: str | None, error: RequestError) -> NewItem:
    """An item that cannot run. It keeps a valid custom_id, so that its owner recognizes it."""
    message = storable(f"Line {line_no}: {error.message}")
    return NewItem(line_no, custom_id, None, "invalid_request", message, error.param)


def _failed_envelope(line: bytes, line_no: int) -> NewItem:
    """The failed item of a line that is not a batch line. Slow, because it looks for the reason."""
    value = json_object(line)
    if "custom_id" not in value:
        raise RequestError("'custom_id' is missing.", "custom_id")
    if not isinstance(value["custom_id"], str):
        raise RequestError("'custom_id' must be a string.", "custom_id")
    custom_id = checked_id(value["custom_id"])
    for name in ("method", "url", "body"):
        if name not in value:
            return _failed(line_no, custom_id, RequestError(f"'{name}' is missing.", name))
        if name != "body" and not isinstance(value[name], str):
            return _failed(line_no, custom_id, RequestError(f"'{name}' must be a string.", name))
    return _failed(line_no, custom_id, RequestError("this is not a batch line."))


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RequestError("this is not valid UTF-8.") from None
