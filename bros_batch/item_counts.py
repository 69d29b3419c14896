"""How many items of a job have ended, and how. Every count that users see comes from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """The items of a job by how they ended: each that has ended is in exactly one of the four.

    An item is *done* if it succeeded, that is, if it has a result. It *failed* if it ran or was read in vain. Cancelled
    and expired items were not run.
    """

    total: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int

    @property
    def ended(self) -> int:
        """Number of items that have their one result or error."""
        return self.succeeded + self.without_result

    @property
    def without_result(self) -> int:
        """Number of items in the error file: those that ended, but not with a result."""
        return self.failed + self.cancelled + self.expired

    @classmethod
    def of_batch(cls, batch: Mapping[str, Any]) -> ItemCounts:
        """The counts of a batch object, as the API returns it."""
        counts = batch.get("item_counts") or {}
        return cls(
            int((batch.get("request_counts") or {}).get("total") or 0),
            *(int(counts.get(name) or 0) for name in ("succeeded", "failed", "cancelled", "expired")),
        )

    def of_total(self) -> str:
        """Such as `20 of 100 done`; the total is unknown until the file has been read."""
        return f"{self.succeeded} of {self.total or '?'} done"

    def shortfalls(self) -> list[str]:
        """Such as `["2 failed", "5 cancelled"]`: the other ways in which items ended, if any did."""
        named = (("failed", self.failed), ("cancelled", self.cancelled), ("expired", self.expired))
        return [f"{count} {name}" for name, count in named if count]
