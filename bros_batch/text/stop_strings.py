"""Stop strings: cuts a text at the first of them while the text is still growing."""

from __future__ import annotations

from collections.abc import Sequence

from bros_batch.text.partial_match import num_begun_chars


class StopCutter:
    """Cuts text at the first stop string, and holds back an end of the text that may be the beginning of one."""

    __slots__ = ("_keeps_stop", "_pending", "_stops", "stopped")

    def __init__(self, stops: Sequence[str], *, keeps_stop: bool = False) -> None:
        """With `keeps_stop`, the text is cut after the stop string."""
        self._stops = tuple(stops)
        self._keeps_stop = keeps_stop
        self._pending = ""
        self.stopped = False

    def push(self, text: str, armed: bool = True) -> str:
        """Append `text` and return the additional text that can be shown.

        A stop string that ends in `text` counts only if `armed`. It sets `stopped`, and all text from its beginning on
        is dropped.
        """
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        held = len(self._pending)
        text = self._pending + text
        if armed:
            # Only a match that ends in the new text counts: an earlier one ended while unarmed.
            found = ((text.find(stop, max(0, held - len(stop) + 1)), len(stop)) for stop in self._stops)
            start, length = min((match for match in found if match[0] >= 0), default=(-1, 0))
            if start >= 0:
                self.stopped = True
                self._pending = ""
                return text[: start + length] if self._keeps_stop else text[:start]
        keep = max(num_begun_chars(text, stop) for stop in self._stops)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return the text that was held back, now that no more follows."""
        text, self._pending = self._pending, ""
        return text
