"""Paths of the endpoints whose requests an engine computes, over HTTP or as the lines of a batch."""

from __future__ import annotations

from typing import Final, Literal, get_args

EndpointPath = Literal[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/decisions",
    "/v1/systemone",
    "/v1/embeddings",
]

CHAT_COMPLETIONS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
DECISIONS: Final = "/v1/decisions"
SYSTEMONE: Final = "/v1/systemone"
EMBEDDINGS: Final = "/v1/embeddings"
ENDPOINTS: tuple[EndpointPath, ...] = get_args(EndpointPath)
