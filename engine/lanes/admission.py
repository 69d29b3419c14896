"""What both lanes ask of a request before it may enter."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admission:
    """`length_refusal` says why a prompt of so many tokens can never be served, or None."""

    length_refusal: Callable[[int], str | None]
    vocab_size: int

    def refusal(self, token_ids: Sequence[int]) -> tuple[str, str] | None:
        """(code, message) of why a prompt can't be served, or None."""
        reason = self.length_refusal(len(token_ids))
        if reason:
            return ("context_length_exceeded" if token_ids else "invalid_request"), reason
        beyond = next((t for t in token_ids if t >= self.vocab_size), None)
        if beyond is not None:
            return "invalid_request", f"token id {beyond} is outside the vocabulary of {self.vocab_size}"
        return None


def monotonic_deadline_s(deadline_unix_s: float | None, now_s: float) -> float | None:
    """A deadline on the wall clock, which others name, on the monotonic one that stands at `now_s`."""
    return None if deadline_unix_s is None else deadline_unix_s - time.time() + now_s
