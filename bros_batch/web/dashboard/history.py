"""The engine's rates and gauges: each second of the last minutes, and each minute of the last day."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SECONDS_KEPT_S = 300.0
MINUTES_KEPT = 24 * 60
MINUTE_S = 60.0
MIN_INTERVAL_S = 0.5  # pages that look at once share a point
MAX_INTERVAL_S = 5.0  # after a longer gap the values between are unknown, so lines are broken there
MAX_MINUTE_GAP_S = 150.0  # the same for minutes: one may be missing

# Counters, shown as rates. Each name has the path of its counter in the engine's stats.
COUNTERS = {
    "rt_tokens": ("lanes", "rt", "generated_tokens"),
    "be_tokens": ("lanes", "be", "generated_tokens"),
    "preemptions": ("preemptions",),
    "truncated": ("truncated_tokens",),
    "copied": ("restored_tokens", "copy"),
    "recomputed": ("restored_tokens", "recompute"),
    "found": ("restored_tokens", "prefix"),
}
# Gauges, shown as they are.
GAUGES = {
    "limit_s": ("step_limit_s",),
    "cap_s": ("step_cap_s",),
    "attainment": ("lanes", "rt", "slo", "recent_ratio"),
    "error_ratio": ("cost_model_error_ratio",),
}


@dataclass(frozen=True, slots=True)
class Point:
    """Values of the series by name at one time; an unknown one is None."""

    at_s: float
    values: Mapping[str, float | None]


@dataclass(slots=True)
class _Minute:
    """The points of a minute that is not over yet."""

    at_s: float
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None:
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def mean(self) -> Point:
        return Point(self.at_s, {name: total / self.counts[name] for name, total in self.sums.items()})


class EngineHistory:
    """The points of one engine, at times of the wall clock. All pages share it, and it grows while none is open."""

    def __init__(self) -> None:
        self.seconds: deque[Point] = deque()
        self.minutes: deque[Point] = deque(maxlen=MINUTES_KEPT)
        self._minute: _Minute | None = None
        self._last_s = float("-inf")
        self._last: Mapping[str, Any] = {}

    def load(self, minutes: Iterable[Point]) -> None:
        """Begin with the minutes that were stored earlier."""
        self.minutes.clear()
        self.minutes.extend(minutes)

    def observe(self, now_s: float, stats: Mapping[str, Any]) -> Point | None:
        """Record the engine's stats, unless the last ones are very recent. Returns a minute that is now over."""
        elapsed_s = now_s - self._last_s
        if 0 <= elapsed_s < MIN_INTERVAL_S:
            return None
        before, self._last, self._last_s = self._last, stats, now_s
        # A restarted engine has fewer steps than before.
        is_next = 0 < elapsed_s <= MAX_INTERVAL_S and stats.get("steps", 0) >= before.get("steps", 0)
        values: dict[str, float | None] = {name: _find(stats, path) for name, path in GAUGES.items()}
        for name, path in COUNTERS.items():
            values[name] = _rate(before, stats, path, elapsed_s) if is_next else None
        values["step_s"] = _mean_step_s(before, stats) if is_next else None
        while self.seconds and self.seconds[0].at_s < now_s - SECONDS_KEPT_S:
            self.seconds.popleft()
        while self.seconds and self.seconds[-1].at_s >= now_s:  # the clock was set back
            self.seconds.pop()
        if not is_next:
            self.seconds.append(Point(now_s - 1e-3, {}))
        self.seconds.append(Point(now_s, values))
        return self._add_to_minute(now_s, values)

    def _add_to_minute(self, now_s: float, values: Mapping[str, float | None]) -> Point | None:
        at_s = now_s - now_s % MINUTE_S
        ended = None
        if self._minute is not None and self._minute.at_s != at_s:
            ended = self._minute.mean()
            self.minutes.append(ended)
        if self._minute is None or ended is not None:
            self._minute = _Minute(at_s)
        self._minute.add(values)
        return ended


def with_gaps(minutes: Iterable[Point]) -> list[Point]:
    """Minutes with an empty point wherever some are missing, so that lines are broken there."""
    found: list[Point] = []
    for point in minutes:
        if found and point.at_s - found[-1].at_s > MAX_MINUTE_GAP_S:
            found.append(Point(point.at_s - 1e-3, {}))
        found.append(point)
    return found


def _find(stats: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = stats
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value if isinstance(value, int | float) else None


def _rate(
    before: Mapping[str, Any], stats: Mapping[str, Any], path: tuple[str, ...], elapsed_s: float
) -> float | None:
    new, old = _find(stats, path), _find(before, path)
    return None if new is None or old is None else max(0.0, new - old) / elapsed_s


def _mean_step_s(before: Mapping[str, Any], stats: Mapping[str, Any]) -> float | None:
    """Mean duration of the steps since then; None if there were none."""
    num_steps = stats.get("steps", 0) - before.get("steps", 0)
    new, old = (_find(each, ("step_time", "sum_s")) for each in (stats, before))
    return (new - old) / num_steps if num_steps and new is not None and old is not None else None
