"""Line charts over a span of time, computed on the server and drawn as SVG by a template."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bros_batch.web.dashboard.history import Point

WIDTH, HEIGHT, MARGIN = 600, 120, 4
WINDOW_S = 120.0
ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)  # times a power of ten


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: the key of its values, its name for readers, and its class in the style sheet."""

    name: str
    title: str
    css: str


@dataclass(frozen=True, slots=True)
class Span:
    """The time that a chart shows, the words at its ends, and the time between two points."""

    seconds: float
    begin: str
    end: str = "now"
    interval_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart ready to draw. `lines` are pairs of a class and SVG points; the last lies on top. `legend` has a class,
    a name and the newest value per series."""

    title: str
    note: str
    top: str
    lines: Sequence[tuple[str, str]]
    legend: Sequence[tuple[str, str, str]]
    begin: str
    end: str
    width: int = WIDTH
    height: int = HEIGHT


def chart(
    title: str,
    series: Sequence[Series],
    points: Sequence[Point],
    show: Callable[[float], str],
    *,
    note: str = "",
    top: float | None = None,
    least_top: float = 0.0,
    span: Span = Span(WINDOW_S, "2 min ago"),
) -> Chart:
    """A chart from 0 to `top`, by default the highest point rounded up, and at least `least_top`.

    `show` formats a value, `note` explains the chart in a sentence. The first series is drawn on top. The newest point
    of `points` is at the right edge; those before the span are left out.
    """
    now_s = points[-1].at_s if points else 0.0
    points = [point for point in points if point.at_s >= now_s - span.seconds - 1.5 * span.interval_s]
    if top is None:
        values = (point.values.get(each.name) for point in points for each in series)
        top = _round_up(max((value for value in values if value is not None), default=0.0))
        top = max(top, least_top) or 1.0
    newest = points[-1].values if points else {}
    return Chart(
        title,
        note,
        show(top),
        [
            (each.css, line)
            for each in reversed(series)
            for line in _lines(points, each.name, now_s, top, span)
        ],
        [(each.css, each.title, _shown(newest.get(each.name), show)) for each in series],
        span.begin,
        span.end,
    )


def _round_up(value: float) -> float:
    """The next round number, so that the scale stays the same for a while."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in ROUND if value <= step * power * (1 + 1e-9))


def _shown(value: float | None, show: Callable[[float], str]) -> str:
    return "–" if value is None else show(value)


def _lines(points: Sequence[Point], name: str, now_s: float, top: float, span: Span) -> Iterable[str]:
    """SVG points of one series; the line is broken where the value is unknown."""
    line: list[str] = []
    for point in points:
        value = point.values.get(name)
        if value is None:
            if line:
                yield " ".join(line)
            line = []
            continue
        x = WIDTH * (1 - (now_s - point.at_s) / span.seconds)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * min(1.0, value / top)
        line.append(f"{x:.0f},{y:.1f}")
    if line:
        yield " ".join(line)
