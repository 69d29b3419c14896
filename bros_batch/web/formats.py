"""Numbers, durations and rates as a reader of the dashboard sees them."""

from __future__ import annotations

import time

from bros_batch.forecast import Forecast


def number(value: int) -> str:
    """An integer with thin spaces between the thousands, which no language reads as a decimal point."""
    return f"{value:,}".replace(",", "\u202f")


def counted(count: int, word: str) -> str:
    """A number of things: `1 row`, `20 rows`."""
    return f"{number(count)} {word}" if count == 1 else f"{number(count)} {word}s"


def duration(seconds: float) -> str:
    """A duration in at most two units: `42 s`, `3 min`, `2 h 10 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def time_left(forecast: Forecast) -> str:
    """When a job is done, with the interval that has a probability of 80%: `40 s (30 s to 1 min)`."""
    low, middle, high = map(duration, (forecast.p10, forecast.p50, forecast.p90))
    return middle if low == high else f"{middle} ({low} to {high})"


def local_time(at_s: float) -> str:
    """A unix time as date and time in the server's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def milliseconds(seconds: float) -> str:
    """A short time in at most three digits: `0.42 ms`, `12.3 ms`, `250 ms`, `1.25 s`."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    value = 1000 * seconds
    return f"{value:.{2 if value < 1 else 1 if value < 100 else 0}f} ms"


def percent(ratio: float) -> str:
    """A ratio as a percentage: `0 %`, `95.3 %`, `100 %`."""
    return f"{100 * ratio:.{0 if ratio in (0, 1) or ratio >= 0.995 else 1}f} %"


def per_second(value: float) -> str:
    """A rate: `1 234/s`; small ones have one decimal place."""
    return f"{number(round(value)) if value >= 10 else f'{value:.1f}'.removesuffix('.0')}/s"
