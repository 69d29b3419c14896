"""Content keys: two prompts with the same key get the same answer, so it has to be computed only once.

A key is a hash of all that an answer depends on: whose request it is, the weights of the model, the tokens of the
prompt, and the sampling parameters with the grammar. Defaults, the chat template and the schema are part of these.
"""

from __future__ import annotations

from hashlib import sha256

import msgspec

from bros_batch.openai_api.engine_requests import EngineRequests
from engine.wire.request_terms import Sampling

KEY_BYTES = 16
# Of an item with more parts (an embedding of thousands of texts), the bookkeeping would cost more than it saves.
MAX_PARTS_WITH_KEYS = 512

_encode = msgspec.msgpack.Encoder().encode


def key_scope(model: str, weights: str, owner: str = "") -> bytes:
    """What all keys of a job begin with. Answers are never reused from one scope in another."""
    return _encode((owner, model, weights))


def content_keys(requests: EngineRequests, scope: bytes) -> list[bytes]:
    """Return one key per part of a request; none if its answers would differ when they are computed again."""
    parts = requests.parts
    if len(parts) > MAX_PARTS_WITH_KEYS or not all(_is_repeatable(part.sampling) for part in parts):
        return []
    beginning = sha256(scope)
    beginning.update(b"%d:" % requests.num_choices)
    beginning.update(_token_bytes(requests.shared_ids))
    num_shared = len(requests.shared_ids)
    keys = []
    for part in parts:
        key = beginning.copy() if len(parts) > 1 else beginning
        key.update(_token_bytes(part.token_ids))
        key.update(b":%d:" % (num_shared + len(part.token_ids)))
        key.update(_encode(part.sampling))
        keys.append(key.digest()[:KEY_BYTES])
    return keys


def _token_bytes(token_ids: list[int]) -> bytes:
    """The tokens as bytes, without their number, so that it does not matter where a prompt is divided."""
    count = len(token_ids)
    return _encode(token_ids)[1 if count < 16 else 3 if count < 65536 else 5 :]


def _is_repeatable(sampling: Sampling) -> bool:
    """Whether the same request gets the same answer: nothing is drawn, or from a seed."""
    return not sampling.temperature or sampling.seed is not None or not sampling.max_tokens
