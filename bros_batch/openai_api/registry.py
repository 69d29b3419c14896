"""All endpoints by their paths."""

from __future__ import annotations

from typing import Any

from bros_batch.openai_api.decisions.decisions import Decisions
from bros_batch.openai_api.decisions.systemone import SystemOne
from bros_batch.openai_api.embeddings import Embeddings
from bros_batch.openai_api.endpoint import Endpoint
from bros_batch.openai_api.endpoints import ENDPOINTS
from bros_batch.openai_api.responses.responses_endpoint import Responses
from bros_batch.openai_api.served_request import ServedRequest
from bros_batch.openai_api.text_endpoints import ChatCompletions, Completions
from bros_batch.request_error import RequestError

REGISTRY: dict[str, Endpoint[Any]] = {
    endpoint.path: endpoint
    for endpoint in (ChatCompletions(), Completions(), Responses(), Decisions(), SystemOne(), Embeddings())
}
assert tuple(REGISTRY) == ENDPOINTS


def endpoint_at(path: str) -> Endpoint[Any]:
    """Return the endpoint with this path. Raises RequestError if there is none."""
    endpoint = REGISTRY.get(path)
    if endpoint is None:
        raise RequestError(f"The endpoint {path!r} is not one of {', '.join(ENDPOINTS)}.", "endpoint")
    return endpoint


def parse_body(path: str, raw: bytes | str) -> ServedRequest:
    """Parse the JSON in `raw` as a request to the endpoint with this path. Raises RequestError, which names the first
    invalid field."""
    request: ServedRequest = endpoint_at(path).parse(raw)
    return request
