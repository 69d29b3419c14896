"""The limits on unfinished rows hold for requests at the same time, without counting in a transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text
from starlette.requests import Request

from bros_batch.db.api_keys import KeyTerms
from bros_batch.db.connections import is_postgres, reading, writing
from bros_batch.db.jobs import create_job
from bros_batch.web.api_key import Key
from bros_batch.web.bulk_limits import check_bulk_limits
from bros_batch.web.errors import ApiError
from tests.services import wait_for


def request_of(owner: str) -> Request:
    key = Key("key_1", owner, "", KeyTerms(owner, max_queued_items=10))
    return Request({"type": "http", "headers": [], "state": {"key": key}})


def submit(database: Engine, owner: str, rows: int, before_end: Callable[[], object] = lambda: None) -> None:
    with writing(database) as connection:
        check_bulk_limits(connection, request_of(owner), rows)
        values = {"input_file_id": "file-1", "endpoint": "/v1/completions", "model": "sim"}
        create_job(connection, **values, owner=owner, announced_rows=rows)
        before_end()


def test_of_two_jobs_at_the_same_time_the_second_waits_and_is_too_much(database: Engine) -> None:
    """On PostgreSQL by an advisory lock of the owner; SQLite has one writer at a time."""
    has_written, may_end = threading.Event(), threading.Event()
    refused: list[ApiError] = []

    def first() -> None:
        submit(database, "ann", 6, lambda: (has_written.set(), may_end.wait()))

    def second() -> None:
        try:
            submit(database, "ann", 5)
        except ApiError as error:
            refused.append(error)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    try:
        assert has_written.wait(30)
        with reading(database) as connection:
            on_postgres = is_postgres(connection)
        if on_postgres:
            assert num_locks(database, granted=True)
        threads[1].start()
        if on_postgres:
            wait_for(lambda: num_locks(database, granted=False), "the second to wait")
            submit(database, "bob", 10)  # nobody else waits
    finally:
        may_end.set()
        for thread in threads:
            thread.join()
    assert len(refused) == 1
    assert refused[0].code == "too_many_queued_items"
    submit(database, "ann", 4)
    with pytest.raises(ApiError, match="Its owner has 10, and this job has 1"):
        submit(database, "ann", 1)


def num_locks(database: Engine, *, granted: bool) -> int:
    with reading(database) as connection:
        query = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted = :granted")
        return int(connection.scalar(query, {"granted": granted}) or 0)
