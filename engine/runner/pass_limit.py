"""The most tokens of a forward pass, learned from passes that ran out of memory."""

from __future__ import annotations

import logging

log = logging.getLogger("engine.runner")

_UNLIMITED = 1 << 62
# A limit is doubled after this many passes that were computed, and each time after twice as many if that was too much:
# a pass that runs out of memory costs as much as many others.
_FIRST_PATIENCE, _MOST_PATIENCE = 256, 1 << 16


class PassLimit:
    """Halves what failed, and tries more again later: memory may have been short for a moment only.

    It depends on nothing but the passes, so all ranks that compute together have the same limit.
    """

    def __init__(self, most_tokens: int = _UNLIMITED) -> None:
        """`most_tokens` is never exceeded."""
        self.tokens = most_tokens
        self._most_tokens = most_tokens
        self._largest_failed = 0
        self._patience = _FIRST_PATIENCE
        self._num_passes = 0  # since the limit changed

    def ran_out(self, num_tokens: int) -> None:
        """A pass of this many tokens did not fit into memory."""
        if self._largest_failed:
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self.tokens, self._num_passes = num_tokens // 2, 0
        self._largest_failed = max(self._largest_failed, num_tokens)
        log.warning(
            "out of memory in a step of %d tokens: the next %d passes have at most %d",
            num_tokens, self._patience, self.tokens,
        )  # fmt: skip

    def was_computed(self) -> None:
        """A pass was computed."""
        if self.tokens == self._most_tokens:
            return
        self._num_passes += 1
        if self._num_passes < self._patience:
            return
        self._num_passes = 0
        # Longer ones than any that failed were not tried before either.
        is_over = 2 * self.tokens >= self._largest_failed
        self.tokens = self._most_tokens if is_over else min(2 * self.tokens, self._most_tokens)
        log.info("passes of up to %d tokens are tried again", min(self.tokens, self._largest_failed))
