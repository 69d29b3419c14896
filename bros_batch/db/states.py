"""The statuses of jobs and items, and the table of the transitions between them. Pure."""

from __future__ import annotations

from enum import StrEnum


class ItemStatus(StrEnum):
    """Status of an item: PENDING waits in the database, QUEUED is in a Redis stream, and the others have ended."""

    PENDING = "pending"
    QUEUED = "queued"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class JobStatus(StrEnum):
    """Status of a job: OpenAI's eight, and PAUSED, in which no item is computed."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    PAUSED = "paused"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class IllegalTransition(ValueError):
    """A transition that the tables below do not have."""

    def __init__(self, what: str, source: str, target: str) -> None:
        super().__init__(f"{what} is {source} and cannot become {target}")
        self.source = source
        self.target = target


#   pending <-> queued
#      |          |
#      +----------+--> succeeded | failed | cancelled | expired --(rerun)--> pending
#
# An item that was taken back is pending while an engine may still have it, and ends with that result if it comes.
ITEM_TRANSITIONS: dict[ItemStatus, frozenset[ItemStatus]] = {
    ItemStatus.PENDING: frozenset(
        {
            ItemStatus.QUEUED,
            ItemStatus.SUCCEEDED,
            ItemStatus.FAILED,
            ItemStatus.CANCELLED,
            ItemStatus.EXPIRED,
        }
    ),
    ItemStatus.QUEUED: frozenset(
        {
            ItemStatus.PENDING,
            ItemStatus.SUCCEEDED,
            ItemStatus.FAILED,
            ItemStatus.CANCELLED,
            ItemStatus.EXPIRED,
        }
    ),
    ItemStatus.SUCCEEDED: frozenset({ItemStatus.PENDING}),
    ItemStatus.FAILED: frozenset({ItemStatus.PENDING}),
    ItemStatus.CANCELLED: frozenset({ItemStatus.PENDING}),
    ItemStatus.EXPIRED: frozenset({ItemStatus.PENDING}),
}

#   validating -> in_progress <-> paused         completed | expired | cancelled --(rerun)--> in_progress
#       |             |             |
#       |             +-> finalizing+-> completed | expired
#       +-> failed    +-> cancelling (also from validating and paused) -> cancelled
JOB_TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.VALIDATING: frozenset({JobStatus.IN_PROGRESS, JobStatus.FAILED, JobStatus.CANCELLING}),
    JobStatus.IN_PROGRESS: frozenset({JobStatus.PAUSED, JobStatus.FINALIZING, JobStatus.CANCELLING}),
    JobStatus.PAUSED: frozenset({JobStatus.IN_PROGRESS, JobStatus.FINALIZING, JobStatus.CANCELLING}),
    JobStatus.FINALIZING: frozenset({JobStatus.COMPLETED, JobStatus.EXPIRED}),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED}),
    JobStatus.FAILED: frozenset(),
    JobStatus.COMPLETED: frozenset({JobStatus.IN_PROGRESS}),
    JobStatus.EXPIRED: frozenset({JobStatus.IN_PROGRESS}),
    JobStatus.CANCELLED: frozenset({JobStatus.IN_PROGRESS}),
}

ENDED_ITEM = frozenset(ItemStatus) - {ItemStatus.PENDING, ItemStatus.QUEUED}
WITHOUT_RESULT = ENDED_ITEM - {ItemStatus.SUCCEEDED}
ENDED_JOB = frozenset({JobStatus.FAILED, JobStatus.COMPLETED, JobStatus.EXPIRED, JobStatus.CANCELLED})


def ensure_item(source: ItemStatus | str, target: ItemStatus) -> None:
    """Raise `IllegalTransition` unless an item may go from `source` to `target`."""
    if target not in ITEM_TRANSITIONS[ItemStatus(source)]:
        raise IllegalTransition("the item", ItemStatus(source), target)


def ensure_job(source: JobStatus | str, target: JobStatus) -> None:
    """Raise `IllegalTransition` unless a job may go from `source` to `target`."""
    if target not in JOB_TRANSITIONS[JobStatus(source)]:
        raise IllegalTransition("the job", JobStatus(source), target)


def item_sources(target: ItemStatus) -> tuple[ItemStatus, ...]:
    """The statuses from which an item may become `target`, for the WHERE of updates of many items."""
    return tuple(source for source, targets in ITEM_TRANSITIONS.items() if target in targets)
