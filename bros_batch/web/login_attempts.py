"""Limits how many wrong keys an address may try at the login."""

from __future__ import annotations

MAX_FAILURES = 10
WINDOW_S = 60.0
MAX_ADDRESSES = 10_000


class LoginAttempts:
    """Counts failed logins per address. After MAX_FAILURES within WINDOW_S, an address has to wait, also with a right
    key: a guess must not succeed."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[float, int]] = {}  # when the window ends, and failures in it

    def wait_s(self, address: str, now_s: float) -> float:
        """Return how long `address` has to wait before its next attempt."""
        until_s, count = self._failures.get(address, (0.0, 0))
        return max(0.0, until_s - now_s) if count >= MAX_FAILURES else 0.0

    def failed(self, address: str, now_s: float) -> None:
        """Count a wrong key."""
        until_s, count = self._failures.pop(address, (0.0, 0))
        if until_s <= now_s:
            until_s, count = now_s + WINDOW_S, 0
        while len(self._failures) >= MAX_ADDRESSES:
            del self._failures[next(iter(self._failures))]
        self._failures[address] = (until_s, count + 1)
