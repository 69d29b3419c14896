"""A job as a person writes it on the page for a new one, and the request for the batch that it becomes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import msgspec

from bros_batch.document_fields import NO_FIELD, found_field
from bros_batch.documents.added_columns import (
    TYPES,
    Column,
    choice_column,
    columns_format,
    list_column,
    typed_column,
)
from bros_batch.documents.first_documents import FirstDocument
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS
from bros_batch.openai_api.validation import validate
from bros_batch.request_error import RequestError
from bros_batch.text.template import missing_field, parse_template
from bros_batch.web.api.new_job import BatchRequest

T = TypeVar("T")

ONE_OF = "one of"
LIST_OF = "list of "
KINDS = (*TYPES, ONE_OF, *(LIST_OF + each for each in TYPES))


class WantedColumn(msgspec.Struct):
    """A column that the answers should have."""

    name: str = ""
    kind: str = "text"
    about: str = ""
    options: str = ""
    optional: bool = False

    def column(self) -> Column:
        """Raises RequestError for one that cannot be made."""
        name = self.name.strip()
        if not name:
            raise RequestError("A column needs a name.")
        if self.kind == ONE_OF:
            options = [each.strip() for each in self.options.replace("|", ",").split(",") if each.strip()]
            if len(options) < 2:
                raise RequestError(
                    f"The column '{name}' needs at least two options, with commas between them."
                )
            return choice_column(name, options, self.about.strip(), self.optional)
        if self.kind not in KINDS:
            raise RequestError(f"The column '{name}' has no type '{self.kind}'.")
        make = list_column if self.kind.startswith(LIST_OF) else typed_column
        return make(name, self.kind.removeprefix(LIST_OF), self.about.strip(), self.optional)


class JobDraft(msgspec.Struct):
    """What the page sends. `shape` says whether the answers are text, have columns, or follow a schema.

    `endpoint` is given if the lines are requests of their own, which take no prompt.
    """

    file: str
    source: dict[str, Any]
    endpoint: str | None = None
    prompt: str = ""
    shape: Literal["text", "columns", "schema"] = "text"
    columns: list[WantedColumn] = []
    schema: str = ""
    system: str = ""
    id_field: str = ""
    name: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    priority: int = 0
    notify: str = ""


def decoded(kind: type[T], raw: bytes) -> T:
    """Read the body of a request of the page. Raises RequestError, with the field at fault as its `param`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # The decoder names the field at the end: `... - at `$.job.priority``.
        _, _, path = str(error).rpartition("`$.")
        name = path.rstrip("`").rpartition(".")[2]
        if name in ("max_tokens", "priority"):
            raise RequestError("Write a whole number here.", name) from None
        raise RequestError(f"Not a job: {error}.", name or None) from None


def defaults_of(draft: JobDraft) -> dict[str, Any]:
    """What the job's rows have in common. Raises RequestError, whose `param` is the field of the page."""
    if draft.endpoint is not None:
        return {}
    prompt = draft.prompt
    given: dict[str, Any] = {"max_tokens": draft.max_tokens, "temperature": draft.temperature}
    if draft.system.strip():
        given["system"] = draft.system
    if draft.shape == "columns":
        try:
            given["response_format"], explanation = columns_format([each.column() for each in draft.columns])
        except RequestError as error:
            raise RequestError(error.message, "columns") from None
        if not draft.columns:
            raise RequestError("Add a column, or choose text as the answer.", "columns")
        prompt += explanation
    if draft.shape == "schema":
        schema = _schema(draft.schema)
        named = {"name": "answer", "schema": schema, "strict": True}
        given["response_format"] = {"type": "json_schema", "json_schema": named}
    return {"prompt": prompt, **{name: value for name, value in given.items() if value is not None}}


def _schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The schema is not JSON: {error}.", "schema") from None
    if not isinstance(schema, dict):
        raise RequestError('A JSON schema is an object, such as {"type": "object", ...}.', "schema")
    return schema


def check_prompt(draft: JobDraft, documents: Sequence[FirstDocument]) -> None:
    """Check the templates and the id against the first rows. Raises RequestError, with the field as its `param`."""
    if draft.endpoint is not None:
        return
    if not draft.prompt.strip():
        raise RequestError("Write what the model should do with each row.", "prompt")
    if not _parsed(draft.prompt, "prompt").fields:
        raise RequestError(
            "The prompt has no {column}, so every row would get the same question. Insert one of the columns.",
            "prompt",
        )
    if not documents:
        return
    for source, param in ((draft.prompt, "prompt"), (draft.system, "system")):
        for name in _parsed(source, param).fields:
            if all(found_field(each.document, name) is NO_FIELD for each in documents):
                user = "the prompt" if param == "prompt" else "the system message"
                message = missing_field(name, documents[0].document, user)
                raise RequestError(message[:1].upper() + message[1:], param)
    if draft.id_field and all(draft.id_field not in each.document for each in documents):
        raise RequestError(missing_field(draft.id_field, documents[0].document, "The id column"), "id_field")


def _parsed(source: str, param: str) -> Any:
    try:
        return parse_template(source)
    except RequestError as error:
        raise RequestError(error.message, param) from None


def batch_request(draft: JobDraft) -> BatchRequest:
    """The request that `POST /v1/batches` would get for this job. Raises RequestError."""
    defaults = defaults_of(draft)
    source = {name: value for name, value in draft.source.items() if value is not None}
    if draft.id_field:
        source["id_field"] = draft.id_field
    body = {
        "input_file_id": draft.file,
        "endpoint": draft.endpoint or CHAT_COMPLETIONS,
        "name": draft.name.strip() or str(source.get("name", ""))[:256] or None,
        "priority": draft.priority,
        "source": source,
        "defaults": defaults or None,
        "notify": draft.notify.strip() or None,
    }
    return validate(BatchRequest, msgspec.json.encode(body))
