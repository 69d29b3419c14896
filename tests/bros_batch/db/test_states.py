"""Statuses of jobs and items and the transitions between them."""

from __future__ import annotations

import itertools

import pytest

from bros_batch.db.states import (
    ENDED_ITEM,
    ENDED_JOB,
    ITEM_TRANSITIONS,
    JOB_TRANSITIONS,
    IllegalTransition,
    ItemStatus,
    JobStatus,
    ensure_item,
    ensure_job,
    item_sources,
)

OPENAI = {
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
}


def test_jobs_have_openais_states_and_paused() -> None:
    assert {status.value for status in JobStatus} == OPENAI | {"paused"}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("validating", "in_progress"),
        ("validating", "failed"),
        ("validating", "cancelling"),
        ("in_progress", "paused"),
        ("in_progress", "finalizing"),
        ("in_progress", "cancelling"),
        ("paused", "in_progress"),
        ("paused", "finalizing"),
        ("paused", "cancelling"),
        ("finalizing", "completed"),
        ("finalizing", "expired"),
        ("cancelling", "cancelled"),
        ("completed", "in_progress"),
        ("expired", "in_progress"),
        ("cancelled", "in_progress"),
    ],
)
def test_a_legal_transition_of_a_job(source: str, target: str) -> None:
    ensure_job(source, JobStatus(target))


def test_there_are_no_other_transitions_of_a_job() -> None:
    legal = sum(len(targets) for targets in JOB_TRANSITIONS.values())
    assert legal == 15
    for source, target in itertools.product(JobStatus, JobStatus):
        if target not in JOB_TRANSITIONS[source]:
            with pytest.raises(IllegalTransition, match=f"the job is {source} and cannot become {target}"):
                ensure_job(source, target)


def test_transitions_of_an_item() -> None:
    assert ITEM_TRANSITIONS[ItemStatus.SUCCEEDED] == {ItemStatus.PENDING}, "only a rerun replaces a result"
    for ended in (ItemStatus.SUCCEEDED, ItemStatus.CANCELLED):
        assert set(item_sources(ended)) == {ItemStatus.PENDING, ItemStatus.QUEUED}
    for source, target in itertools.product(ItemStatus, ItemStatus):
        if target in ITEM_TRANSITIONS[source]:
            ensure_item(source, target)
        else:
            with pytest.raises(IllegalTransition):
                ensure_item(source, target)


def test_every_status_leads_to_an_end() -> None:
    for table, ends in ((JOB_TRANSITIONS, ENDED_JOB), (ITEM_TRANSITIONS, ENDED_ITEM)):
        reached = set(ends)
        while more := {source for source, targets in table.items() if targets & reached} - reached:  # type: ignore[attr-defined]
            reached |= more
        assert reached == set(table)
