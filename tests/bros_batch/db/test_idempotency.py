"""Idempotency keys: one request of several gets a key, also when they come at the same time."""

from __future__ import annotations

import threading
from dataclasses import replace

from sqlalchemy import Engine, func, select

from bros_batch.db import idempotency, jobs
from bros_batch.db.connections import reading, writing
from bros_batch.db.table_rows import IdempotencyKey
from bros_batch.db.tables import idempotency_keys
from bros_batch.db.tables import jobs as jobs_table

FIRST = IdempotencyKey(idempotency.key_id("Bearer a", "k"), "f" * 64, "batch_1", 1000.0)


def test_the_first_request_has_the_key_for_a_day(database: Engine) -> None:
    second = replace(FIRST, job_id="batch_2", created_at=1000.0 + idempotency.KEPT_S - 1)
    next_day = replace(FIRST, job_id="batch_3", created_at=1000.0 + idempotency.KEPT_S)
    with writing(database) as connection:
        assert idempotency.claim_key(connection, FIRST) == FIRST
        assert idempotency.claim_key(connection, second) == FIRST
        assert idempotency.claim_key(connection, next_day) == next_day
        assert idempotency.find_key(connection, FIRST.id, next_day.created_at) == next_day


def test_keys_of_different_clients_never_meet() -> None:
    ids = {
        idempotency.key_id(credentials, key)
        for credentials, key in (("", "ab"), ("a", "b"), ("ab", ""), ("Bearer x", "k"), ("Bearer y", "k"))
    }
    assert len(ids) == 5


def test_old_keys_are_deleted(database: Engine) -> None:
    with writing(database) as connection:
        idempotency.claim_key(connection, FIRST)
        fresh = replace(FIRST, id="fresh", created_at=2000.0)
        idempotency.claim_key(connection, fresh)
        now_s = 1500.0 + idempotency.KEPT_S
        assert idempotency.has_old_keys(connection, now_s)
        assert idempotency.delete_old_keys(connection, now_s) == 1
        assert not idempotency.has_old_keys(connection, now_s)
        assert idempotency.find_key(connection, fresh.id, now_s) == fresh


def test_requests_at_the_same_time_create_one_job(database: Engine) -> None:
    """Each is a transaction of its own; one of them fails after it claimed the key, and another one takes its place."""
    count = 8
    barrier = threading.Barrier(count)
    created: list[str] = []

    def request(number: int) -> None:
        claimed = replace(FIRST, job_id=jobs.new_job_id())
        barrier.wait()
        try:
            with writing(database) as connection:
                holder = idempotency.claim_key(connection, claimed)
                if holder.job_id == claimed.job_id:
                    jobs.create_job(
                        connection, input_file_id="file-1", endpoint="/v1", model="m", job_id=claimed.job_id
                    )
                    if number % 2:
                        raise RuntimeError("this request fails")
                created.append(holder.job_id)
        except RuntimeError:
            pass

    threads = [threading.Thread(target=request, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(database) as connection:
        num_jobs = connection.scalar(select(func.count()).select_from(jobs_table))
        num_keys = connection.scalar(select(func.count()).select_from(idempotency_keys))
    assert (num_jobs, num_keys) == (1, 1)
    assert len(set(created)) == 1
    assert len(created) >= count // 2
