"""Dates that exist, as a regular expression: the grammar's own rule knows no leap years and allows the year 0000."""

from __future__ import annotations

YEAR = r"(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
MONTH_AND_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
DATE = f"(?:{YEAR}-{MONTH_AND_DAY}|{LEAP_YEAR}-02-29)"
# What a string of these formats matches besides.
PATTERNS = {"date": f"^{DATE}$", "date-time": f"^{DATE}[Tt]"}
