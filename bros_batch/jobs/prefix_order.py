"""The order in which prepared items are queued: those that begin alike follow each other.

So the engine finds what they share in its prefix cache before other prompts take the place. Only the items of one group
of one job change places, so none of them waits for long, and results keep the order of the input.
"""

from __future__ import annotations

_NAME = b"\xa9token_ids"  # a string of nine characters in msgpack
_LENGTH_BYTES = {0xDC: 3, 0xDD: 5}  # what an array begins with, if it has more than 15 elements


def prompt_order(payload: bytes) -> bytes:
    """Return by what an item, an encoded ItemRequest, is sorted: its tokens and what follows them.

    To compare bytes takes a fraction of the time that lists of numbers take.
    """
    start = payload.find(_NAME) + len(_NAME)
    return payload[start + _LENGTH_BYTES.get(payload[start], 1) :]
