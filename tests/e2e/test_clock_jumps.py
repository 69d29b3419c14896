"""Guarantee: a wall clock that is set forward or back by an hour delays a job by seconds; every line has one result.

A preloaded library changes the wall clock of all services at once, Redis included, while they run. The monotonic clock
goes on, as it does when an administrator or NTP sets the time.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from engine.wire.redis_keys import items_key
from tests.e2e.known_jobs import (
    IMPATIENT,
    Api,
    assert_every_line_once,
    item_statuses,
    job_row,
    simulated_engine,
    write_job,
)
from tests.services import unavailable, wait_for
from tests.up_process import running_up

NUM_LINES = 600
HOUR_S = 3600
SETTINGS = {
    **IMPATIENT,
    "BROS_QUEUE_MAX_ITEMS": "60",
    "BROS_INGEST_GROUP_LINES": "4",
}


class WallClock:
    """The wall clock of services that are started with `env`."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None or not sys.platform.startswith("linux"):
            unavailable("a C compiler on Linux")
        library = directory / "wall_clock.so"
        source = Path(__file__).with_name("wall_clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
        offset_file = directory / "offset"
        offset_file.write_bytes(bytes(8))
        with offset_file.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)
        self.env = {"LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET_FILE": str(offset_file)}

    def set(self, offset_s: int) -> None:
        """Set the clock to `offset_s` after the true time."""
        self._offset[:] = struct.pack("=q", offset_s)


@pytest.mark.slow
def test_the_clock_jumps_while_a_job_runs(tmp_path):
    clock = WallClock(tmp_path)
    job = write_job(tmp_path / "in.jsonl", NUM_LINES, max_tokens=24)
    database_url = f"sqlite:///{tmp_path / 'bros.db'}"
    data_dir = tmp_path / "data"
    with (
        running_up(
            data_dir,
            engine=simulated_engine(),
            BROS_DATABASE_URL=database_url,
            **SETTINGS,
            **clock.env,
        ) as up,
        Api(up.state()["url"]) as api,
    ):
        batch_id = api.submit(job)
        # Back, after the worker has died with a lease, which now lasts for an hour.
        wait_for(lambda: job_row(database_url, batch_id).total > NUM_LINES // 4, "ingest")
        up.kill("worker")
        clock.set(-HOUR_S)
        wait_for(lambda: api.num_done(batch_id) > NUM_LINES // 8, "results after the clock was set back")
        # Forward: every lease, lock, claim and message seems to be an hour old.
        clock.set(0)
        wait_for(lambda: api.num_done(batch_id) > NUM_LINES // 4, "results after the clock was set forward")
        clock.set(HOUR_S)
        # Back, after Redis has lost items, which seem to have been queued in the future.
        wait_for(lambda: item_statuses(database_url, batch_id).get("queued"), "queued items")
        with Redis(unix_socket_path=str(data_dir / "run" / "redis.sock")) as redis:
            assert redis.time()[0] > time.time() + HOUR_S / 2, "the clock of Redis was not set"
            key = items_key("tiny")
            redis.xdel(key, *(entry_id for entry_id, _ in redis.xrevrange(key, count=10)))
        clock.set(0)
        assert_every_line_once(api, batch_id, job, tmp_path / "data-model", database_url)
        # And the next job does not wait for an hour either.
        batch_id = api.submit(job)
        clock.set(-HOUR_S)
        assert_every_line_once(api, batch_id, job, tmp_path / "data-model", database_url)
