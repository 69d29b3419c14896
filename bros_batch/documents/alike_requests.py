"""Batch lines that differ in their prompts only, whose requests are parsed once for all of them."""

from __future__ import annotations

from typing import Any

import msgspec

from bros_batch.openai_api.endpoint import Endpoint, Responder, ServedModel
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.request_error import RequestError

MAX_KINDS = 32
MAX_KIND_BYTES = 64 * 1024

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class AlikeRequests:
    """Parses the bodies of an endpoint without their prompts: what most lines of a job have in common."""

    def __init__(self, endpoint: Endpoint[Any]) -> None:
        self._endpoint = endpoint
        self._known: dict[tuple[tuple[str, bytes], ...], ServedRequest] = {}
        # By the id of the request, which cannot be another's as long as the request is kept here.
        self._responders: dict[int, tuple[ServedRequest, ServedModel, Responder]] = {}

    def without_prompt(self, body: str) -> ServedRequest | None:
        """The request of a body that is known to be valid, with another prompt than its own.

        None if its response depends on its prompt, or its other fields are valid with its own prompt only.
        """
        prompt = self._endpoint.document_fields
        given = _decode_fields(body)
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

    def responder(self, request: ServedRequest, model: ServedModel) -> Responder:
        """What answers items whose requests differ from this one in their prompts only."""
        known = self._responders.get(id(request))
        if known is None or known[1] is not model:
            if len(self._responders) >= MAX_KINDS:
                self._responders.clear()
            known = self._responders[id(request)] = (request, model, self._endpoint.responder(request, model))
        return known[2]
