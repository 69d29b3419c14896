"""Lists of jobs, their log, and the history of pace, on SQLite and PostgreSQL."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import Connection, Engine, update

from bros_batch.db import job_control, job_events, jobs, pace, tables
from bros_batch.db.connections import reading, writing
from bros_batch.db.job_list import ORDERS, JobFilter, count_by_status, jobs_page, next_job_ids
from bros_batch.db.rerun import rerun_rows
from tests.bros_batch.world import World, batch_lines

NAMES = ("b", "A", None, "c", "c", "Ünder_score", "50% off")


def add_jobs(connection: Connection) -> None:
    for number in range(42):
        job = jobs.create_job(
            connection,
            input_file_id="file-x" if number % 6 else "",  # every sixth is that of a background response
            endpoint="/v1/completions",
            model="tiny",
            name=NAMES[number % 7],
            job_id=f"batch_{number * 37 % 42:02d}",
            now_s=float(number // 3),  # some are of the same time
        )
        status = ("paused", "completed", "failed")[number % 3]
        values = {
            "status": status,
            "total": number % 5,
            "failed": number % 4,
            "output_tokens": number % 7,
            "completed_at": number / 2 if status == "completed" else None,
        }
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(values))


@pytest.mark.parametrize("order", ORDERS)
def test_pages_lead_through_all_jobs_and_back(database: Engine, order: str) -> None:
    with writing(database) as connection:
        add_jobs(connection)
        for which, expected in ((JobFilter(), 35), (JobFilter("c", "paused"), 14)):
            whole = [job.id for job in jobs_page(connection, which, order, 100).jobs]
            assert len(set(whole)) == len(whole)
            assert whole
            if which == JobFilter():
                assert len(whole) == expected
            forward, after = [], ""
            while True:
                page = jobs_page(connection, which, order, 4, after=after)
                assert page.has_before == bool(after)
                forward += [job.id for job in page.jobs]
                if not page.has_after:
                    break
                after = page.jobs[-1].id
            assert forward == whole
            page = jobs_page(connection, which, order, 4, before=whole[-1])
            assert [job.id for job in page.jobs] == whole[:-1][-4:]
            assert page.has_after
            assert page.has_before == (len(whole) > 5)


def test_filters_and_counts(database: Engine) -> None:
    with writing(database) as connection:
        add_jobs(connection)

        def names(search: str) -> set[str | None]:
            return {job.name for job in jobs_page(connection, JobFilter(search), "newest", 100).jobs}

        assert names("_score") == {"Ünder_score"}
        assert names("0%") == {"50% off"}
        assert names("A") >= {"A"}
        counts = count_by_status(connection, JobFilter())
        assert sum(counts.values()) == 35
        for status, count in counts.items():
            assert len(jobs_page(connection, JobFilter("", status), "newest", 100).jobs) == count
        found: list[str] = []
        while part := next_job_ids(connection, JobFilter("", "paused"), found[-1] if found else "", 4):
            found += part
        assert found == sorted(found)
        assert len(found) == counts["paused"]


def test_a_job_tells_what_happened_to_it(world: World) -> None:
    lines = [*batch_lines(3), {"custom_id": "without a method"}]
    job_id = world.running(lines)
    with writing(world.database) as connection:
        job_control.pause_job(connection, job_id)
        job_control.pause_job(connection, job_id)  # it is paused already
        job_control.resume_job(connection, job_id)
    world.run_through(job_id)
    with writing(world.database) as connection:
        rerun_rows(connection, job_id, [2])
    world.run_through(job_id)
    with reading(world.database) as connection:
        events = job_events.list_events(connection, job_id)
    kinds = [event.kind for event in events]
    once = ["finalizing", "completed"]
    assert kinds == ["created", "read", "paused", "resumed", "first_result", *once, "rerun", *once]
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert events[1].detail == {"total": 4, "succeeded": 0, "without_result": 1}
    assert events[-1].detail == {"total": 4, "succeeded": 3, "without_result": 1}


def test_pace_is_kept_for_a_day(database: Engine) -> None:
    now_s = time.time()
    series = pace.engine_series("engine-0")
    with writing(database) as connection:
        for at_s in (now_s - 2 * pace.KEPT_S, now_s - 120, now_s - 120, now_s):
            pace.put_minute(connection, series, at_s, {"tokens": at_s, "unknown": None})
        pace.put_minute(connection, pace.job_series("x"), now_s, {"ended": 1.0})
        assert pace.forget_old_minutes(connection, now_s) == 1
        minutes = pace.minutes_of(connection, series, now_s - pace.KEPT_S)
    assert [minute.numbers["tokens"] for minute in minutes] == [now_s - 120, now_s]
    assert all(minute.at % 60 == 0 for minute in minutes)
