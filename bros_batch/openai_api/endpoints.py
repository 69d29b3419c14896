"""Paths of the two endpoints that generate text."""

from __future__ import annotations

from typing import Final, Literal

Endpoint = Literal["/v1/chat/completions", "/v1/completions"]

CHAT_COMPLETIONS: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
ENDPOINTS: tuple[Endpoint, ...] = (CHAT_COMPLETIONS, COMPLETIONS)
