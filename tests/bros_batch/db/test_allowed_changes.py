"""What is offered for a job is what is accepted."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import update

from bros_batch.db import tables
from bros_batch.db.allowed_changes import allowed_changes
from bros_batch.db.connections import writing
from bros_batch.db.jobs import lock_job
from bros_batch.db.rerun import CannotRerun, rerun_rows
from bros_batch.db.states import IllegalTransition, JobStatus
from bros_batch.web.change_job import CHANGES
from tests.bros_batch.world import World, batch_line

UNREADABLE = b"nonsense\n"
KINDS = {
    "all succeeded": [("succeeded", batch_line("a"))],
    "one failed": [("succeeded", batch_line("a")), ("failed", batch_line("b"))],
    "one cancelled": [("cancelled", batch_line("a"))],
    "one expired": [("expired", batch_line("a"))],
    "one unreadable": [("succeeded", batch_line("a")), ("failed", None)],
}


def job_of(world: World, kind: str) -> str:
    """A job whose items have ended in these ways; a line of None is not readable."""
    rows = KINDS[kind]
    data = b"".join(UNREADABLE if line is None else json.dumps(line).encode() + b"\n" for _, line in rows)
    job_id = world.running(data)
    counts = {
        name: sum(status == name for status, _ in rows)
        for name in ("succeeded", "failed", "cancelled", "expired")
    }
    with writing(world.database) as connection:
        for line_no, (status, _) in enumerate(rows, start=1):
            where = (tables.items.c.job_id == job_id, tables.items.c.line_no == line_no)
            connection.execute(update(tables.items).where(*where).values(status=status))
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job_id).values(**counts))
    return job_id


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_offered_exactly_where_it_is_accepted(world: World, kind: str) -> None:
    job_id = job_of(world, kind)
    for status in JobStatus:
        with writing(world.database) as connection:
            connection.execute(
                update(tables.jobs).where(tables.jobs.c.id == job_id).values(status=status.value)
            )
            offered = allowed_changes(connection, lock_job(connection, job_id))
        for change, apply in {**CHANGES, "rerun": rerun_rows}.items():
            with writing(world.database) as connection, connection.begin_nested() as attempt:
                try:
                    apply(connection, job_id)
                    accepted = change == "rerun" or lock_job(connection, job_id).status != status
                except (IllegalTransition, CannotRerun):
                    accepted = False
                attempt.rollback()
            assert (change in offered) == accepted, (status, change)


def test_a_rerun_of_unreadable_lines_alone_is_not_offered(world: World) -> None:
    job_id = job_of(world, "one unreadable")
    with writing(world.database) as connection:
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job_id).values(status="completed"))
        assert allowed_changes(connection, lock_job(connection, job_id)) == []
