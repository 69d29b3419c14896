"""How long before the end of the step on the device the next one is to be begun, when the loop schedules ahead."""

from __future__ import annotations

# What the device may wait for counts twice, and there is a margin for delays on a busy host.
WAITED_FACTOR, MARGIN_S = 2.0, 0.001
# The next step's kind is not known before it is planned. It counts as replayed after this many that were.
SETTLED_STEPS = 8
MEMORY = 0.1  # weight of the newest step in the mean


class LaunchLead:
    """The recent mean of what steps would have needed: of those launched kernel by kernel, and of those replayed."""

    def __init__(self) -> None:
        self._launched_s = 0.0
        self._replayed_s = 0.0
        self._num_replayed = 0  # steps since one was launched kernel by kernel

    @property
    def next_s(self) -> float:
        """How long before the end of the step on the device the next one is to be begun."""
        is_replayed = self._num_replayed >= SETTLED_STEPS
        return (self._replayed_s if is_replayed else self._launched_s) + MARGIN_S

    def observe(
        self, scheduling_s: float, launching_s: float, prepared_s: float, *, is_replayed: bool
    ) -> None:
        """Learn from a step how long it took to schedule and to launch, and after how much of the launch the device
        could begin.

        Until the device could begin, each delay makes it wait. What is launched beyond that only has to end before
        the previous step does, or that step's tokens are sent late, and the cost model takes the delay for its time.
        """
        needed_s = WAITED_FACTOR * (scheduling_s + prepared_s) + max(0.0, launching_s - prepared_s)
        if is_replayed:
            self._num_replayed += 1
            self._replayed_s = _mean(self._replayed_s, needed_s)
        else:
            self._num_replayed = 0
            self._launched_s = _mean(self._launched_s, needed_s)


def _mean(known_s: float, newest_s: float) -> float:
    """The mean with the newest value; that alone if there is none so far."""
    known_s = known_s or newest_s
    return known_s + MEMORY * (newest_s - known_s)
