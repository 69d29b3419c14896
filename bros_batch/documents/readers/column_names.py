"""The names of columns from the first row of a table: each of them present, and no two of them equal."""

from __future__ import annotations

from collections.abc import Sequence


def column_names(header: Sequence[str]) -> list[str]:
    """Return the names without the spaces around them. An empty one becomes `column_3`, a repeated one `name_2`."""
    given = [name.strip() for name in header]
    taken = set(given)
    names: list[str] = []
    seen: set[str] = set()
    for position, name in enumerate(given, start=1):
        if name and name not in seen:
            names.append(name)
        else:
            names.append(_free(name or "column", taken, 2 if name else position))
            taken.add(names[-1])
        seen.add(names[-1])
    return names


def _free(name: str, taken: set[str], number: int) -> str:
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"
