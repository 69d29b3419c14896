"""Reads and changes responses that are JSON text, and leaves their log-probabilities as they are, which may be long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

Json = dict[str, Any]
_Members = dict[str, msgspec.Raw]


def with_members(response: str | bytes, members: Mapping[str, Any]) -> bytes:
    """Return an encoded response with `members` in place of its own. Nothing else of it is decoded."""
    found: dict[str, Any] = msgspec.json.decode(response, type=_Members)
    return msgspec.json.encode({**found, **members})


def decoded_response(response: str | bytes) -> Json:
    """Return a response whose log-probabilities are JSON text still, one piece per token."""
    return {
        name: list(map(_item, _members(value))) if name == "output" else msgspec.json.decode(value)
        for name, value in msgspec.json.decode(response, type=_Members).items()
    }


def _item(members: _Members) -> Json:
    return {
        name: list(map(_part, _members(value))) if name == "content" else msgspec.json.decode(value)
        for name, value in members.items()
    }


def _part(members: _Members) -> Json:
    return {
        name: msgspec.json.decode(value, type=list[msgspec.Raw] if name == "logprobs" else Any)
        for name, value in members.items()
    }


def _members(value: msgspec.Raw) -> list[_Members]:
    return msgspec.json.decode(value, type=list[_Members])
