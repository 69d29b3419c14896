"""Times of any unit as texts: ISO 8601, days with hours for durations, and back. Python's own have no nanoseconds.

They are whole numbers of a unit, as in Arrow: since the beginning of 1970, or since midnight. What Python has no date
for, such as the year 10000, is written as that number.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
EPOCH = datetime.datetime(1970, 1, 1)
EPOCH_UTC = EPOCH.replace(tzinfo=datetime.UTC)
FIRST_DAY = EPOCH.toordinal()
DAYS = "days"
_MICROSECOND = datetime.timedelta(microseconds=1)
_SINCE = re.compile(r"(-?\d{1,20}) (?:s|ms|us|ns|days)(?: since 1970-01-01)?")
_NANOSECONDS = re.compile(r"\.\d{6}(\d{1,3})")
_DURATION = re.compile(r"(?:(-?\d{1,9}) days?, )?(\d{1,2}):(\d\d):(\d\d)(?:\.(\d{1,9}))?")

Text = Callable[[int], str]


def moment_text(unit: str, zone: datetime.tzinfo | None) -> Text:
    """Return what writes a moment: with the offset of a zone, or without one."""
    per_second = PER_SECOND[unit]
    epoch = EPOCH if zone is None else EPOCH_UTC

    def text(value: int) -> str:
        microseconds, nanoseconds = divmod(value * 10**9 // per_second, 1000)
        try:
            moment = epoch + datetime.timedelta(microseconds=microseconds)
            if zone is not None:
                moment = moment.astimezone(zone)
        except (OverflowError, ValueError):
            return f"{value} {unit} since 1970-01-01"
        return _with_nanoseconds(moment.isoformat(), nanoseconds, moment.microsecond, at=19)

    return text


def time_text(unit: str) -> Text:
    """Return what writes a time of day."""
    per_second = PER_SECOND[unit]

    def text(value: int) -> str:
        microseconds, nanoseconds = divmod(value * 10**9 // per_second, 1000)
        time = (EPOCH + datetime.timedelta(microseconds=microseconds)).time()
        return _with_nanoseconds(time.isoformat(), nanoseconds, time.microsecond, at=8)

    return text


def duration_text(unit: str) -> Text:
    """Return what writes a duration, as Python does: `1 day, 2:03:04.5`."""
    per_second = PER_SECOND[unit]

    def text(value: int) -> str:
        microseconds, nanoseconds = divmod(value * 10**9 // per_second, 1000)
        try:
            duration = datetime.timedelta(microseconds=microseconds)
        except OverflowError:
            return f"{value} {unit}"
        shown = str(duration)
        return _with_nanoseconds(shown, nanoseconds, duration.microseconds, at=len(shown))

    return text


def date_text(days: int) -> str:
    """Return a day, which is given as a number of days."""
    try:
        return datetime.date.fromordinal(FIRST_DAY + days).isoformat()
    except (OverflowError, ValueError):
        return f"{days} {DAYS} since 1970-01-01"


def _with_nanoseconds(text: str, nanoseconds: int, microseconds: int, at: int) -> str:
    """Put the nanoseconds behind the six digits of the microseconds; `at` is where those begin if they are zero."""
    if not nanoseconds:
        return text
    if not microseconds:
        text = f"{text[:at]}.000000{text[at:]}"
    end = text.index(".") + 7
    return f"{text[:end]}{nanoseconds:03}{text[end:]}"


def date_of(text: str) -> int:
    """Return the number of days that `date_text` wrote. Raises ValueError, as the others do, for another text."""
    number = _number(text)
    return datetime.date.fromisoformat(text).toordinal() - FIRST_DAY if number is None else number


def moment_of(unit: str, has_zone: bool) -> Callable[[str], int]:
    """Return what reads the texts of `moment_text`."""

    def read(text: str) -> int:
        if (number := _number(text)) is not None:
            return number
        moment = datetime.datetime.fromisoformat(text)
        if (moment.tzinfo is not None) is not has_zone:
            raise ValueError(f"not a moment with and without a zone: {text}")
        since = moment - (EPOCH_UTC if has_zone else EPOCH)
        return _units(since // _MICROSECOND, text, unit)

    return read


def time_of(unit: str) -> Callable[[str], int]:
    """Return what reads the texts of `time_text`."""

    def read(text: str) -> int:
        time = datetime.time.fromisoformat(text)
        if time.tzinfo is not None:
            raise ValueError(f"a time with a zone: {text}")
        return _units((datetime.datetime.combine(EPOCH, time) - EPOCH) // _MICROSECOND, text, unit)

    return read


def duration_of(unit: str) -> Callable[[str], int]:
    """Return what reads the texts of `duration_text`."""

    def read(text: str) -> int:
        number = _number(text)
        return _units(timedelta_of(text) // _MICROSECOND, text, unit) if number is None else number

    return read


def timedelta_of(text: str) -> datetime.timedelta:
    """Return a duration without its nanoseconds."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"not a duration: {text}")
    days, hours, minutes, seconds = (int(each or 0) for each in found.groups()[:4])
    microseconds = int((found[5] or "")[:6].ljust(6, "0"))
    return datetime.timedelta(days, seconds, microseconds, 0, minutes, hours)


def _number(text: str) -> int | None:
    found = _SINCE.fullmatch(text)
    return None if found is None else int(found[1])


def _units(microseconds: int, text: str, unit: str) -> int:
    """The number of units in these microseconds and the nanoseconds that follow them in the text."""
    found = _NANOSECONDS.search(text)
    nanoseconds = microseconds * 1000 + (int(found[1].ljust(3, "0")) if found else 0)
    units, rest = divmod(nanoseconds * PER_SECOND[unit], 10**9)
    if rest:
        raise ValueError(f"more digits than {unit}: {text}")
    return units
