"""The memo of an item that is being computed: what record needs, besides the output, to store its answers.

It travels with the item to the engine and back. So an answer is stored under the key that it was computed for, whatever
has become of the item or of the engine since.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from bros_batch.db.table_rows import ContentKey
from bros_batch.jobs.finished_item import NOTHING_REUSED, Reused
from engine.wire.decoding import DECODE_ERRORS
from engine.wire.item_messages import Choice, ItemResult

# Log-probabilities of a long prompt take more than the answer is worth.
MAX_ANSWER_BYTES = 256 * 1024

_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]  # what a column holds

_encode = msgspec.msgpack.Encoder().encode
_decode_choices = msgspec.msgpack.Decoder(list[Choice]).decode


class Memo(msgspec.Struct, frozen=True, array_like=True):
    """The content keys of an item's parts and the number of tokens of their prompts, for an engine with `weights`.

    `known` holds the answers that the engine does not compute, by part, and None for those that it does. It is empty if
    the engine computes all of them.
    """

    weights: str
    keys: Sequence[bytes]
    prompt_tokens: Sequence[_Count]
    known: Sequence[Sequence[Choice] | None] = ()

    def encoded(self) -> bytes:
        return _encode(self)

    def completed(self, result: ItemResult) -> tuple[ItemResult, Reused]:
        """Return the result with the answers that were known, and what that saved."""
        if not self.known or result.error_code is not None:
            return result, NOTHING_REUSED
        computed = iter(self._by_part(result.choices))
        parts = [next(computed) if part is None else part for part in self.known]
        reused = reused_tokens(self.known, self.prompt_tokens)
        whole = msgspec.structs.replace(
            result,
            choices=[choice for part in parts for choice in part],
            prompt_tokens=result.prompt_tokens + reused.prompt_tokens,
            cached_tokens=result.cached_tokens + reused.prompt_tokens,
        )
        return whole, reused

    def answers(self, result: ItemResult) -> list[ContentKey]:
        """Return what the engine has computed, as answers to store: none if the keys are for another engine."""
        if result.weights != self.weights or not self.weights:
            return []
        if len(self.keys) == 1 and not self.known:  # most items
            (key,), (count,) = self.keys, self.prompt_tokens
            answer = ContentKey(key, result.item_id, count, _encode(result.choices))
            return [answer] if len(answer.choices) <= MAX_ANSWER_BYTES else []
        is_computed = [part is None for part in self.known] or [True] * len(self.keys)
        keyed = [
            (key, count)
            for key, count, computed in zip(self.keys, self.prompt_tokens, is_computed, strict=True)
            if computed
        ]
        answers = [
            ContentKey(key, result.item_id, count, _encode(choices))
            for (key, count), choices in zip(keyed, self._by_part(result.choices), strict=True)
        ]
        return [answer for answer in answers if len(answer.choices) <= MAX_ANSWER_BYTES]

    def _by_part(self, choices: Sequence[Choice]) -> list[Sequence[Choice]]:
        """The outputs that the engine has computed, by part. Raises ValueError if they are not as many for each."""
        num_computed = self.known.count(None) if self.known else len(self.keys)
        if not num_computed or not choices or len(choices) % num_computed:
            raise ValueError(f"it has {len(choices)} outputs for {num_computed} prompts")
        size = len(choices) // num_computed
        return [choices[start : start + size] for start in range(0, len(choices), size)]


_decode_memo = msgspec.msgpack.Decoder(Memo).decode


def memo_of(result: ItemResult) -> Memo | None:
    """Return the memo of a result, or None if it has none that can be read."""
    if not result.memo:
        return None
    try:
        return _decode_memo(result.memo)
    except DECODE_ERRORS:
        return None


def choices_of(answer: ContentKey) -> list[Choice]:
    """Return the engine's output that an answer consists of. Raises `DECODE_ERRORS`."""
    return _decode_choices(answer.choices)


def reused_tokens(known: Sequence[Sequence[Choice] | None], prompt_tokens: Sequence[int]) -> Reused:
    """Return the tokens of the parts that are known."""
    return Reused(
        sum(count for part, count in zip(known, prompt_tokens, strict=True) if part is not None),
        sum(len(choice.token_ids) for part in known if part is not None for choice in part),
    )
