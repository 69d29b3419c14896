"""Line charts over the last minutes, as SVG in HTML: no script, and nothing to fetch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from bros_batch.web.dashboard.engine_history import WINDOW_S, Point
from bros_batch.web.dashboard.fragments import number

WIDTH, HEIGHT, MARGIN = 600, 120, 4
ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)  # times a power of ten


@dataclass(frozen=True, slots=True)
class Series:
    """A line: the name of its values, what a reader calls it, and its class in the style sheet."""

    name: str
    title: str
    css: str


def chart(
    title: str,
    series: Sequence[Series],
    points: Sequence[Point],
    show: Callable[[float], str],
    *,
    top: float | None = None,
    least_top: float = 0.0,
) -> str:
    """A panel with a chart from 0 to `top` (by default to the highest point, and `least_top` at least), its newest
    values, and its scale. `show` writes a value for people."""
    now_s = points[-1].at_s if points else 0.0
    if top is None:
        values = (point.values.get(each.name) for point in points for each in series)
        top = _round_up(max((value for value in values if value is not None), default=0.0))
        top = max(top, least_top) or 1.0
    lines = "".join(
        f'<polyline class="{each.css}" points="{line}"/>'
        for each in reversed(series)  # the first lies on top
        for line in _lines(points, each.name, now_s, top)
    )
    newest = points[-1].values if points else {}
    legend = "".join(
        f'<li class="{each.css}">{escape(each.title)} <b>{_shown(newest.get(each.name), show)}</b></li>'
        for each in series
    )
    return (
        f'<section class="panel chart"><h2>{escape(title)}</h2><div class="plot"><span class="top">{show(top)}</span>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}, last two minutes">'
        f'<path class="grid" d="M0 {HEIGHT / 2}H{WIDTH}"/>{lines}</svg></div>'
        f'<div class="times"><span>2 min ago</span><span>now</span></div><ul class="legend">{legend}</ul></section>'
    )


def _round_up(value: float) -> float:
    """To a round number, so that the scale stays for a while."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in ROUND if value <= step * power * (1 + 1e-9))


def _shown(value: float | None, show: Callable[[float], str]) -> str:
    return "–" if value is None else show(value)


def _lines(points: Sequence[Point], name: str, now_s: float, top: float) -> Iterable[str]:
    """The points of one series, broken where it is not known."""
    line: list[str] = []
    for point in points:
        value = point.values.get(name)
        if value is None:
            if line:
                yield " ".join(line)
            line = []
            continue
        x = WIDTH * (1 - (now_s - point.at_s) / WINDOW_S)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * min(1.0, value / top)
        line.append(f"{x:.0f},{y:.1f}")
    if line:
        yield " ".join(line)


def milliseconds(seconds: float) -> str:
    """Three figures at the most: `0.42 ms`, `12.3 ms`, `250 ms`, `1.25 s`."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    value = 1000 * seconds
    return f"{value:.{2 if value < 1 else 1 if value < 100 else 0}f} ms"


def percent(ratio: float) -> str:
    return f"{100 * ratio:.{0 if ratio in (0, 1) or ratio >= 0.995 else 1}f} %"


def per_second(value: float) -> str:
    """`1 234/s`; small numbers with a figure behind the point."""
    return f"{number(round(value)) if value >= 10 else f'{value:.1f}'.removesuffix('.0')}/s"
