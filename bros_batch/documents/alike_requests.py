"""Batch lines that differ in their prompts only, whose requests are parsed once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from bros_batch.openai_api.endpoint import Endpoint, Requester, Responder, ServedModel
from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.request_error import RequestError

MAX_KINDS = 32
MAX_KIND_BYTES = 64 * 1024

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

T = TypeVar("T")


class AlikeRequests:
    """Parses the bodies of an endpoint without their prompts: what most lines of a job have in common."""

    def __init__(self, endpoint: Endpoint[Any]) -> None:
        self._endpoint = endpoint
        self._known: dict[tuple[tuple[str, bytes], ...], ServedRequest] = {}
        self._requesters = _PerRequest[Requester](endpoint.requester)
        self._responders = _PerRequest[Responder](endpoint.responder)

    def without_prompt(self, body: str) -> ServedRequest | None:
        """The request of a body that is known to be valid, with another prompt than its own.

        None if its response depends on its prompt, or its other fields are valid with its own prompt only.
        """
        return self._request_of(_decode_fields(body))

    def _request_of(self, given: Mapping[str, msgspec.Raw]) -> ServedRequest | None:
        prompt = self._endpoint.document_fields
        kind = tuple((name, bytes(value)) for name, value in given.items() if name not in prompt)
        request = self._known.get(kind)
        if request is None:
            try:
                request = self._endpoint.parse(msgspec.json.encode({**given, **prompt}))
            except RequestError:
                return None
            if len(self._known) == MAX_KINDS:
                self._known.clear()
            if sum(len(value) for _, value in kind) <= MAX_KIND_BYTES:
                self._known[kind] = request
        return None if request.shows_prompt else request

    def of_plain(self, body: str) -> ServedRequest | None:
        """The same of a body that may not be valid: None if it is not, or if only parsing it tells."""
        try:
            given = _decode_fields(body)
            return self._request_of(given) if self._endpoint.has_plain_prompt(given) else None
        except msgspec.MsgspecError:
            return None

    def engine_requests(self, body: str, model: ServedModel) -> EngineRequests | None:
        """What the engine computes for a body. Raises RequestError for what it cannot compute.

        None if the whole body has to be parsed for that, which says what is wrong with one that is not valid.
        """
        try:
            given = _decode_fields(body)
            request = self._request_of(given)
        except msgspec.MsgspecError:
            return None
        return None if request is None else self._requesters.of(request, model)(given)

    def responder(self, request: ServedRequest, model: ServedModel) -> Responder:
        """What answers items whose requests differ from this one in their prompts only."""
        return self._responders.of(request, model)


class _PerRequest(Generic[T]):
    """Keeps what `make` returns for a request and a model."""

    def __init__(self, make: Callable[[Any, ServedModel], T]) -> None:
        self._make = make
        # By the id of the request, which cannot be another's as long as the request is kept here.
        self._made: dict[int, tuple[ServedRequest, ServedModel, T]] = {}

    def of(self, request: ServedRequest, model: ServedModel) -> T:
        known = self._made.get(id(request))
        if known is None or known[1] is not model:
            if len(self._made) >= MAX_KINDS:
                self._made.clear()
            known = self._made[id(request)] = (request, model, self._make(request, model))
        return known[2]
