"""Encodes long values as JSON in pieces, so that other threads run in between."""

from __future__ import annotations

from typing import Any

import msgspec

PIECE_ELEMENTS = 512  # of a list, which are encoded in one go


def encoded_in_pieces(value: Any) -> bytes:
    """Return `value` as JSON, encoded in pieces: other threads run only between two calls of the encoder."""
    if isinstance(value, dict):
        return b"{" + b",".join(_member(name, each) for name, each in value.items()) + b"}"
    if not isinstance(value, list):
        return msgspec.json.encode(value)
    if len(value) <= PIECE_ELEMENTS:
        return b"[" + b",".join(map(encoded_in_pieces, value)) + b"]"
    pieces = (value[first : first + PIECE_ELEMENTS] for first in range(0, len(value), PIECE_ELEMENTS))
    return b"[" + b",".join(msgspec.json.encode(piece)[1:-1] for piece in pieces) + b"]"


def _member(name: str, value: Any) -> bytes:
    return msgspec.json.encode(name) + b":" + encoded_in_pieces(value)
