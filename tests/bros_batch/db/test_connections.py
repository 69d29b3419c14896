"""Transactions of SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from bros_batch.db import connections, jobs
from bros_batch.db.connections import (
    is_postgres,
    open_database,
    reading,
    writing,
)
from bros_batch.db.schema import upgrade


def test_writers_wait_for_each_other(database: Engine) -> None:
    """Read first, write later: on SQLite, a writer that did not lock when it began would fail here."""
    with writing(database) as connection:
        job_id = jobs.create_job(connection, input_file_id="f", endpoint="/", model="m").id
    failures: list[BaseException] = []

    def add() -> None:
        try:
            for _ in range(20):
                with writing(database) as connection:
                    query = text("SELECT total FROM jobs WHERE id = :id" + lock)
                    total = connection.execute(query, {"id": job_id}).scalar_one()
                    connection.execute(text("UPDATE jobs SET total = :total"), {"total": total + 1})
        except BaseException as error:
            failures.append(error)

    with reading(database) as connection:
        lock = " FOR UPDATE" if is_postgres(connection) else ""
    threads = [threading.Thread(target=add) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    with reading(database) as connection:
        job = jobs.get_job(connection, job_id)
    assert job is not None and job.total == 100


def test_readers_do_not_wait_for_a_writer(database: Engine) -> None:
    with writing(database) as writer:
        jobs.create_job(writer, input_file_id="f", endpoint="/", model="m")
        with reading(database) as reader:
            assert jobs.list_jobs(reader) == []


def test_an_exception_rolls_the_transaction_back(database: Engine) -> None:
    with pytest.raises(ZeroDivisionError), writing(database) as connection:
        jobs.create_job(connection, input_file_id="f", endpoint="/", model="m")
        raise ZeroDivisionError
    with reading(database) as connection:
        assert jobs.list_jobs(connection) == []


def test_sqlite_needs_a_file() -> None:
    with pytest.raises(ValueError, match="needs a file"):
        open_database("sqlite://")


def test_the_directory_of_a_sqlite_file_is_private(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path / 'deep' / 'bros.db'}")
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700


def test_times_survive_exactly(database: Engine) -> None:
    with writing(database) as connection:
        job = jobs.create_job(
            connection, input_file_id="f", endpoint="/", model="m", now_s=1_763_630_000.123457
        )
        assert job.created_at == 1_763_630_000.123457
        assert jobs.get_job(connection, job.id) == job


def test_a_connection_that_the_server_closed_while_it_was_idle_is_replaced(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.dialect.name != "postgresql":
        pytest.skip("SQLite has no server")
    monkeypatch.setattr(connections, "PROBE_AFTER_S", 0.0)
    with reading(database) as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    other = open_database(database.url.render_as_string(hide_password=False))
    with writing(other) as connection:
        # Returns when the process has ended.
        assert connection.scalar(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": pid})
    other.dispose()
    with reading(database) as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != pid
