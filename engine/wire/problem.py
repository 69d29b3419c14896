"""A problem of a request, and the sentences that say what is wrong."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from engine.wire.limits import Range


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request cannot be computed: one of the codes of `Rejected`, a sentence, and the field at fault.

    If that is a field of one part of an item, `of_part` has its number, and the problem as if it were the whole prompt.
    """

    code: str
    message: str
    param: str
    of_part: tuple[int, Problem] | None = None


def foreign_token(token_ids: Collection[int], vocab_size: int) -> int | None:
    """The least id below 0, or else the largest beyond the vocabulary, or None."""
    least, most = min(token_ids), max(token_ids)
    if least < 0:
        return least
    return most if most >= vocab_size else None


def not_in_vocabulary(param: str, token_id: int, vocab_size: int) -> Problem:
    text = f"'{param}' has token id {token_id}, which is outside the vocabulary of {vocab_size} tokens."
    return invalid(param, text)


def out_of_range(param: str, value: float, valid: Range) -> Problem | None:
    if valid.has(value):
        return None
    return invalid(param, f"'{param}' must be from {valid.least} to {valid.most}, not {value}.")


def too_many(param: str, what: str, number: int, most: int) -> Problem:
    return invalid(param, f"'{param}' has {number} {what}; at most {most} are allowed.")


def invalid(param: str, message: str) -> Problem:
    return Problem("invalid_request", message, param)
