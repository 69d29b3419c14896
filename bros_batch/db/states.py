"""The words for where jobs and items stand, and the one table of which step may follow which. Pure."""

from __future__ import annotations

from enum import StrEnum


class ItemStatus(StrEnum):
    """One line of a job. PENDING waits in the database, QUEUED has a delivery in Redis; the rest have ended."""

    PENDING = "pending"
    QUEUED = "queued"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class JobStatus(StrEnum):
    """OpenAI's eight batch states, and PAUSED: nothing new is prepared, what is queued still finishes."""

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
    """A step that the table does not have."""

    def __init__(self, what: str, source: str, target: str) -> None:
        super().__init__(f"{what} is {source} and cannot become {target}")
        self.source = source
        self.target = target


#   pending <-> queued -> succeeded
#      |          |
#      +----------+--> failed | cancelled | expired --(retry)--> pending
ITEM_TRANSITIONS: dict[ItemStatus, frozenset[ItemStatus]] = {
    ItemStatus.PENDING: frozenset({ItemStatus.QUEUED, ItemStatus.CANCELLED, ItemStatus.EXPIRED}),
    ItemStatus.QUEUED: frozenset(
        {
            ItemStatus.PENDING,
            ItemStatus.SUCCEEDED,
            ItemStatus.FAILED,
            ItemStatus.CANCELLED,
            ItemStatus.EXPIRED,
        }
    ),
    ItemStatus.SUCCEEDED: frozenset(),
    ItemStatus.FAILED: frozenset({ItemStatus.PENDING}),
    ItemStatus.CANCELLED: frozenset({ItemStatus.PENDING}),
    ItemStatus.EXPIRED: frozenset({ItemStatus.PENDING}),
}

#   validating -> in_progress <-> paused         completed | expired | cancelled --(retry)--> in_progress
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
    """The states an item may reach `target` from: the WHERE of every bulk step."""
    return tuple(source for source, targets in ITEM_TRANSITIONS.items() if target in targets)


def job_sources(target: JobStatus) -> tuple[JobStatus, ...]:
    """The states a job may reach `target` from."""
    return tuple(source for source, targets in JOB_TRANSITIONS.items() if target in targets)
