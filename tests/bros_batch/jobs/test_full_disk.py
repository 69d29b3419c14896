"""A disk that is full while a job is ingested, recorded or finalized: the run stops, and the next one continues."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from bros_batch.db.connections import is_disk_full, reading, writing
from bros_batch.jobs import finalize as finalize_module
from bros_batch.jobs.outage import is_outage
from tests.bros_batch.world import FOREVER, World, batch_lines
from tests.full_disk import file_size_limit

ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@contextmanager
def full_database(world: World) -> Iterator[None]:
    """Forbid SQLite to grow: it fails as it does on a full disk."""

    def limit(connection, _record, _proxy=None) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # the present size: it cannot be less

    event.listen(world.database, "checkout", limit)
    world.database.dispose()
    try:
        yield
    finally:
        event.remove(world.database, "checkout", limit)
        world.database.dispose()


@ON_SQLITE
def test_ingest_continues_when_the_database_can_grow_again(world: World) -> None:
    job_id = world.submit([{"text": "x" * 2000, "id": f"{number}"} for number in range(300)])
    world.settings = world.settings.model_copy(update={"ingest_group_lines": 50, "lease_s": 0.0001})
    with full_database(world), pytest.raises(OperationalError) as failed:
        world.ingest(job_id)
    assert is_outage(failed.value) and is_disk_full(failed.value)
    world.check_counts(job_id)
    assert world.sweep().ingest == [job_id]
    world.ingest(job_id)
    assert world.check_counts(job_id).total == 300


@ON_SQLITE
def test_results_stay_in_redis_until_the_database_can_grow_again(world: World) -> None:
    job_id = world.running(batch_lines(40))
    world.prepare()
    world.engine.answer(world.engine.take(), "A long answer. " * 200)
    with full_database(world), pytest.raises(OperationalError) as failed:
        world.record()
    assert is_disk_full(failed.value)
    assert world.check_counts(job_id).succeeded == 0
    assert world.record().changed == 40
    world.finalize(job_id)
    assert world.check_counts(job_id).status == "completed"


def test_finalize_gives_back_what_it_could_not_finish(world: World) -> None:
    job_id = world.running(batch_lines(100))
    world.prepare()
    world.engine.answer(world.engine.take(), "A long answer. " * 200)
    world.record()
    world.settings = world.settings.model_copy(update={"lease_s": 0.0001})
    if (
        world.database.dialect.name == "sqlite"
    ):  # the limit is for the output file, not for the database's log
        with contextlib.closing(world.database.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    part = world.settings.files_dir / f".{job_id}.output.part"
    with file_size_limit(200_000), pytest.raises(OSError) as failed:
        world.finalize(job_id, until_s=FOREVER)
    assert failed.value.errno == errno.EFBIG
    assert is_outage(failed.value)
    assert part.stat().st_size < 20_000
    assert world.sweep().finalize == [job_id]
    world.finalize(job_id)
    job = world.check_counts(job_id)
    assert job.status == "completed"
    assert [line["custom_id"] for line in world.file_lines(job.output_file_id)] == [
        f"doc-{n}" for n in range(100)
    ]
    assert not part.exists()


def test_a_finalizer_that_has_lost_its_lease_renames_nothing(world: World) -> None:
    """It stops before it names its files, and another run begins to write new ones under the same names."""
    job_id = world.running(batch_lines(5))
    world.prepare()
    world.engine.answer(world.engine.take())
    world.record()
    with writing(world.database) as connection:
        leased = finalize_module.job_leases.take_lease(
            connection, job_id, finalize_module.STATUSES, 0.0001, 1.0
        )
    assert leased is not None
    asleep = finalize_module._Finalizer(world.worker, *leased)
    with asleep.files() as (output, error):
        assert asleep.write(output, error, FOREVER)
        for path in asleep._temporary.values():
            path.unlink()  # as the other run does when it names them
            path.write_bytes(b"half a line of the other run")
        with writing(world.database) as connection:
            finalize_module.job_leases.take_lease(connection, job_id, finalize_module.STATUSES, 30.0, 1e9)
        with pytest.raises(finalize_module.LeaseLost):
            asleep.finish(output, error)
    for path in asleep._temporary.values():
        assert path.read_bytes() == b"half a line of the other run"


def test_what_counts_as_an_outage() -> None:
    assert is_outage(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert is_outage(ResponseError("MISCONF Errors writing to the AOF file: No space left on device"))
    assert is_outage(ResponseError("Error running script (call to f_02): @user_script:2: -MISCONF Errors"))
    assert is_outage(OutOfMemoryError("command not allowed when used memory > 'maxmemory'."))
    assert not is_outage(ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"))
    assert not is_outage(ValueError("a bug"))


@ON_SQLITE
def test_what_clients_and_engines_hear_of_survives_a_power_cut(world: World) -> None:
    full, statements = 2, []
    with writing(world.database, durable=True) as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == full
    with writing(world.database) as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() != full

    @event.listens_for(world.database, "before_cursor_execute")
    def _note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement.strip())

    job_id = world.running(batch_lines(3))
    statements.clear()
    world.prepare()
    claim = next(
        n
        for n, statement in enumerate(statements)
        if statement.startswith("UPDATE items SET status = 'queued'")
    )
    begin = max(n for n in range(claim) if statements[n] == "BEGIN IMMEDIATE")
    assert statements[begin - 1] == "PRAGMA synchronous = FULL"
    with reading(world.database):
        assert world.run_through(job_id).succeeded == 3
