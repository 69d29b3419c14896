"""Tokenizing texts that differ only at their ends: what they have in common is tokenized once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bros_batch.text.tokenizer import ModelTokenizer

# How a text is split into tokens at one place depends on the characters around it, hardly ever on more than these.
CONTEXT_CHARS = 64
NUM_CUTS = 8
# Endings that begin with so many equal characters are split alike before them.
LEAST_COMMON_CHARS = 8
MAX_KEPT_CHARS = 16_384  # of endings that are remembered


def encode_endings(
    tokenizer: ModelTokenizer, beginning: str, endings: Sequence[str], separator: str = ""
) -> tuple[list[int], list[list[int]]]:
    """Return the token ids of `beginning + separator + ending` for each ending: the tokens that all share, and the rest
    of each.

    The texts are cut before the separator if the tokens of the first text around it are those of its two parts: the
    tokens of endings that were asked for before are known. Otherwise, they are cut shortly before the end of
    `beginning`, where the tokens of the first text are the same whether or not the text before the cut is there.
    """
    if separator and sum(map(len, endings)) <= MAX_KEPT_CHARS:
        alone = _encoded_alone(tokenizer, separator, tuple(endings))
        if alone is not None:
            kept = beginning[-CONTEXT_CHARS:]
            ids = tokenizer.ids_of_part(kept + separator + endings[0])
            if ids == tokenizer.ids_of_part(kept) + alone.shared_ids + alone.rests[0]:
                return tokenizer.ids_of_part(beginning) + alone.shared_ids, alone.rests
    return _encode_cut(tokenizer, beginning + separator, endings)


@dataclass(frozen=True, slots=True)
class _Endings:
    """The token ids of a separator and each of several endings: those that all share, and the rest of each."""

    shared_ids: list[int]
    rests: list[list[int]]


@lru_cache(maxsize=64)
def _encoded_alone(tokenizer: ModelTokenizer, separator: str, endings: tuple[str, ...]) -> _Endings | None:
    """Return the tokens of the endings; None if they differ too soon for one of them to speak for the others."""
    if common_length(endings) < LEAST_COMMON_CHARS and len(endings) > 1:
        return None
    ids = [tokenizer.ids_of_part(separator + ending) for ending in endings]
    num_shared = common_length(ids) if len(ids) > 1 else 0
    return _Endings(ids[0][:num_shared], [each[num_shared:] for each in ids])


def _encode_cut(
    tokenizer: ModelTokenizer, beginning: str, endings: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    ids, starts = tokenizer.encode_part(beginning + endings[0])
    num_shared = _cut(tokenizer, beginning, endings[0], ids, starts)
    kept = beginning[starts[num_shared] :] if num_shared else beginning
    rests = [ids[num_shared:]]
    rests += [tokenizer.ids_of_part(kept + ending) for ending in endings[1:]]
    more = common_length(rests) if len(rests) > 1 else 0
    return ids[:num_shared] + rests[0][:more], [rest[more:] for rest in rests]


def common_length(sequences: Sequence[Any]) -> int:
    """Return with how many elements all sequences begin alike: texts, or lists of token ids."""
    first, last = min(sequences), max(sequences)  # in this order, those between them begin like both
    for index, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return index
    return min(len(first), len(last))


def _cut(
    tokenizer: ModelTokenizer, beginning: str, ending: str, ids: Sequence[int], starts: Sequence[int]
) -> int:
    """Return the number of tokens before the cut; 0 if no place is found."""
    last = len(beginning) - CONTEXT_CHARS
    cut = bisect_right(starts, last) - 1
    for index in range(cut, max(cut - NUM_CUTS, 0), -1):
        # A token may be a part of a character.
        begins_character = starts[index] > starts[index - 1]
        if begins_character and tokenizer.ids_of_part(beginning[starts[index] :] + ending) == ids[index:]:
            return index
    return 0
