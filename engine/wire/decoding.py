"""What cannot be decoded: the errors that a decoder raises, and what is known of a message all the same."""

from __future__ import annotations

import re

import msgspec

from engine.wire.protocol import Rejected
from engine.wire.request_terms import ShortText

# Everything that decoding of foreign bytes raises: wrong types, invalid UTF-8, numbers out of range, and nesting
# without end.
DECODE_ERRORS: tuple[type[Exception], ...] = (
    msgspec.MsgspecError,
    ValueError,
    OverflowError,
    RecursionError,
)
# What encoding raises: an integer of more than 64 bits, text that has no UTF-8 form, or a frame that is too long.
ENCODE_ERRORS: tuple[type[Exception], ...] = (msgspec.MsgspecError, ValueError, OverflowError, TypeError)

# In the message of a ValidationError: where it happened, or what is missing.
_FIELD = re.compile(r"`\$\.(?:sampling\.)?((?!sampling`)\w+)|required field `(\w+)`")


class Envelope(msgspec.Struct, frozen=True):
    """The fields of a message that tell whom an error concerns."""

    type: str
    id: ShortText | None = None


_decode_envelope = msgspec.msgpack.Decoder(Envelope).decode


def envelope_of(body: bytes) -> Envelope | None:
    """The envelope of a message that does not decode, or None if it has none that can be read."""
    try:
        return _decode_envelope(body)
    except DECODE_ERRORS:
        return None


def rejection_of(body: bytes, error: Exception) -> Rejected | None:
    """The answer to a `Submit` or `SubmitParts` that does not decode, or None if `body` is neither or its id cannot be
    read."""
    envelope = envelope_of(body)
    if envelope is None or envelope.type not in ("submit", "submit_parts") or envelope.id is None:
        return None
    fields = [found[1] or found[2] for found in _FIELD.finditer(str(error))]
    message = f"The request cannot be read: {error}."
    return Rejected(envelope.id, "invalid_request", message, param=fields[-1] if fields else None)
