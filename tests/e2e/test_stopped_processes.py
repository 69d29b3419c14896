"""Guarantee: a process that stands still for longer than every timeout, and then continues, spoils nothing.

Meanwhile others may have taken its lease, its locks, its messages and its items. Such a process must not write what
another one has written. Items that a worker has claimed, but not yet put into Redis, may count as lost once, because
it stood still for as long as a dead one.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.e2e.known_jobs import (
    IMPATIENT,
    Api,
    assert_every_line_once,
    item_statuses,
    job_row,
    simulated_engine,
    write_job,
)
from tests.services import wait_for
from tests.up_process import Up, running_up

LONGER_THAN_EVERY_TIMEOUT_S = 5.5  # those of IMPATIENT, and LOCK_TTL_MS of bros_batch.jobs.locks
NUM_LINES = 600
SETTINGS = {
    **IMPATIENT,
    "BROS_QUEUE_MAX_ITEMS": "100",
    "BROS_INGEST_GROUP_LINES": "4",
}


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Stop processes with SIGSTOP, and let them continue at the end, but not before every timeout has passed."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    continue_s = time.monotonic() + LONGER_THAN_EVERY_TIMEOUT_S
    try:
        yield
        time.sleep(max(continue_s - time.monotonic(), 0))
    finally:
        for pid in pids:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGCONT)


def pool_processes(up: Up) -> list[psutil.Process]:
    return psutil.Process(up.state()["children"]["worker"]).children()


def process_with_open_file(up: Up, path: Path) -> int | None:
    """The pool process that has a file open, which is the one that works on it."""
    for process in pool_processes(up):
        if any(Path(file.path) == path for file in process.open_files()):
            return process.pid
    return None


def stops_between_transactions(pid: int, database: Path) -> bool:
    """Stop a process, and let it continue if it holds SQLite's only write lock, for which all others would wait."""
    os.kill(pid, signal.SIGSTOP)
    try:
        with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        os.kill(pid, signal.SIGCONT)
        return False
    return True


@contextmanager
def running_job(directory: Path) -> Iterator[tuple[Up, str]]:
    """Run a job of many small transactions, and check its results at the end."""
    job = write_job(directory / "in.jsonl", NUM_LINES, max_tokens=24)
    database_url = f"sqlite:///{directory / 'bros.db'}"
    with (
        running_up(
            directory / "data", engine=simulated_engine(rows=8), BROS_DATABASE_URL=database_url, **SETTINGS
        ) as up,
        Api(up.state()["url"]) as api,
    ):
        batch_id = api.submit(job)
        yield up, batch_id
        assert_every_line_once(api, batch_id, job, directory / "data-model", database_url)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("redis", "engine", "worker"), ("beat", "web")])
def test_a_service_stands_still(tmp_path, names):
    with running_job(tmp_path) as (up, batch_id):
        for name in names:
            wait_for(lambda: item_statuses(f"sqlite:///{tmp_path / 'bros.db'}", batch_id).get("queued"))
            with stopped(up.state()["children"][name]):
                pass


@pytest.mark.slow
def test_a_process_of_the_worker_stands_still_while_another_one_takes_its_job(tmp_path):
    database = tmp_path / "bros.db"
    with running_job(tmp_path) as (up, batch_id):
        input_path = up.data_dir / "files" / job_row(f"sqlite:///{database}", batch_id).input_file_id
        reader = wait_for(lambda: process_with_open_file(up, input_path), "ingest")
        assert reader is not None
        wait_for(lambda: stops_between_transactions(reader, database), "a moment between transactions")
        with stopped(reader):
            wait_for(
                lambda: job_row(f"sqlite:///{database}", batch_id).status != "validating", "ingest by another"
            )
        for process in pool_processes(up):  # in any task, and with SQLite's write lock or without
            with stopped(process.pid):
                pass
        with closing(sqlite3.connect(database)) as connection:
            while connection.execute("SELECT status FROM jobs").fetchone() == ("in_progress",):
                time.sleep(0.002)  # finalize takes only a moment
        with stopped(*(process.pid for process in pool_processes(up))):
            pass
