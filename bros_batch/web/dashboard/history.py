"""The engine's rates and gauges over the last minutes, from its counters a little earlier."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WINDOW_S = 120.0
MIN_INTERVAL_S = 0.5  # pages that look at once share a point
MAX_INTERVAL_S = 5.0  # after a longer gap the values between are unknown, so lines are broken there

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


class EngineHistory:
    """The points of the last two minutes. All pages share one, so a page that opens shows what others saw."""

    def __init__(self) -> None:
        self.points: deque[Point] = deque()
        self._last_s = float("-inf")
        self._last: Mapping[str, Any] = {}

    def observe(self, now_s: float, stats: Mapping[str, Any]) -> None:
        """Record the engine's stats, unless the last ones are very recent."""
        elapsed_s = now_s - self._last_s
        if elapsed_s < MIN_INTERVAL_S:
            return
        before, self._last, self._last_s = self._last, stats, now_s
        # A restarted engine has fewer steps than before.
        is_next = elapsed_s <= MAX_INTERVAL_S and stats.get("steps", 0) >= before.get("steps", 0)
        values: dict[str, float | None] = {name: _find(stats, path) for name, path in GAUGES.items()}
        for name, path in COUNTERS.items():
            values[name] = _rate(before, stats, path, elapsed_s) if is_next else None
        values["step_s"] = _mean_step_s(before, stats) if is_next else None
        if not is_next:
            self.points.append(Point(now_s - 1e-3, {}))
        self.points.append(Point(now_s, values))
        while self.points and self.points[0].at_s < now_s - WINDOW_S:
            self.points.popleft()


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
