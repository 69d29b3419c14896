"""The request that an item stands for: the body of a batch line as it is, or a document put into its job's prompt.

An item's body is kept as text and read once per stage: ingest checks it, prepare makes tokens of it, and record reads
how its output is to be cut and formatted. `bros_batch.db.table_rows.Item` says why it is not kept in a parsed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from bros_batch.documents.alike_requests import AlikeRequests
from bros_batch.documents.form import DOCUMENT
from bros_batch.openai_api.completion_response import Json, ResponseHead
from bros_batch.openai_api.endpoint import Endpoint, Outcome, ServedModel
from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.openai_api.registry import endpoint_at
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.openai_api.validation import check_strict
from bros_batch.request_error import RequestError
from bros_batch.text.template import Template, parse_template

DEFAULT_PROMPT = "{text}"

_decode_document = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class JobRequests:
    """How the items of one job become tokens.

    `shared` is the request that all documents of a job have in common, apart from their text. It is None for batch
    lines, each of which is a request of its own; `alike` then knows what they have in common after all.
    """

    endpoint: Endpoint[Any]
    shared: ServedRequest | None
    prompt: Template
    system: Template | None
    alike: AlikeRequests

    @property
    def has_schema(self) -> bool:
        """Whether the job itself has the schema of its answers. An answer that is cut short is of no use then."""
        return self.shared is not None and self.shared.has_schema

    def engine_requests(self, model: ServedModel, body: str, line_no: int) -> EngineRequests:
        """What an item becomes for the engine. Raises RequestError, which says what is wrong with the line."""
        known = self.alike.engine_requests(body, model) if self.shared is None else None
        if known is not None:
            return known
        return self.endpoint.checked_engine_requests(self._request_of(body, line_no), model)

    def response(self, head: ResponseHead, model: ServedModel, body: str, outcome: Outcome) -> Json:
        """The response body for an item that the engine has computed."""
        if self.shared is None:
            request = self.alike.without_prompt(body)
        else:
            request = None if self.shared.shows_prompt else self.shared
        if request is None:
            return self.endpoint.response(head, self._request_of(body, 0), model, outcome)
        return self.alike.responder(request, model)(head, outcome)

    def _request_of(self, body: str, line_no: int) -> ServedRequest:
        if self.shared is None:
            request: ServedRequest = self.endpoint.parse(body)
            return request
        document = _decode_document(body)
        prompt = self.prompt.render(document, line_no)
        system = None if self.system is None else self.system.render(document, line_no)
        filled: ServedRequest = self.endpoint.with_document(self.shared, prompt, system)
        return filled


def job_requests(path: str, model: str, form: str | None, defaults: Mapping[str, Any]) -> JobRequests:
    """How the items of a job become requests. Raises RequestError if the job's own defaults are invalid."""
    options = {name: value for name, value in defaults.items() if value is not None}
    prompt = _template(options.pop("prompt", DEFAULT_PROMPT), "prompt")
    system = _template(options.pop("system"), "system") if "system" in options else None
    endpoint = endpoint_at(path)
    if form != DOCUMENT:
        return JobRequests(endpoint, None, prompt, system, AlikeRequests(endpoint))
    body = msgspec.json.encode({**options, "model": model, **endpoint.document_fields})
    shared = without_stream(endpoint.parse(body))
    check_strict(shared)  # nobody but our own clients writes a job's defaults: an unknown name is a mistake
    return JobRequests(endpoint, shared, prompt, system, AlikeRequests(endpoint))


def _template(source: Any, name: str) -> Template:
    if not isinstance(source, str):
        raise RequestError(f"'{name}' must be a string.", name)
    try:
        return parse_template(source)
    except RequestError as error:
        raise RequestError(f"'{name}' is not usable: {_lowered(error.message)}", name) from None


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def prompt_fields(defaults: Mapping[str, Any]) -> list[str]:
    """The fields of the job's own prompt; none if it has no prompt. The defaults must be valid."""
    prompt = defaults.get("prompt")
    return [] if prompt is None else parse_template(prompt).fields


def try_job_requests(
    path: str, model: str, form: str | None, defaults: Mapping[str, Any]
) -> JobRequests | RequestError:
    """As `job_requests`, but returns the error, which then is the error of each item of the job."""
    try:
        return job_requests(path, model, form, defaults)
    except RequestError as error:
        return error


def without_stream(request: ServedRequest) -> ServedRequest:
    """The request itself. Raises RequestError if it asks for a stream, which a batch cannot have."""
    if request.is_streamed:
        raise RequestError("'stream' is not for batches: their results come in a file.", "stream")
    return request
