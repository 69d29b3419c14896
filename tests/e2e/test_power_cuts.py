"""Guarantee: every line ends in exactly one result although all processes die at once, in the middle of each stage.

The kernel keeps what the processes have written, as it does when a container is killed; what a commit means when the
machine itself loses its power is tested in tests/bros_batch/jobs/test_full_disk.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis.exceptions import RedisError

from engine.wire.redis_keys import RESULTS_KEY
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
from tests.up_process import Up, start_up, stop

NUM_LINES = 1000
# How often each stage is cut.
CUTS = int(os.environ.get("BROS_TEST_POWER_CUTS", "1"))
SETTINGS = {
    **IMPATIENT,
    "BROS_QUEUE_MAX_ITEMS": "200",
    "BROS_INGEST_GROUP_LINES": "10",
    "BROS_MAX_ATTEMPTS": "50",
}


def cut_power(up: Up) -> None:
    """Kill `up` and all of its descendants."""
    for process in up.family():
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    up.process.wait()
    stop(up)


class Stages:
    """When a job is in the middle of a stage. `share` is how far it is in it, from 0 to 1."""

    def __init__(self, database_url: str, data_dir: Path, job_id: str) -> None:
        self._url = database_url
        self._data_dir = data_dir
        self._job_id = job_id

    def ingest(self, share: float) -> bool:
        job = job_row(self._url, self._job_id)
        return job.status == "in_progress" or job.total >= share * NUM_LINES

    def prepare(self, share: float) -> bool:
        statuses = item_statuses(self._url, self._job_id)
        return NUM_LINES - statuses.get("pending", 0) >= share * NUM_LINES / 4

    def engine(self, share: float) -> bool:
        return item_statuses(self._url, self._job_id).get("succeeded", 0) >= (0.25 + share / 4) * NUM_LINES

    def record(self, share: float) -> bool:
        succeeded = item_statuses(self._url, self._job_id).get("succeeded", 0)
        try:
            with Redis(unix_socket_path=str(self._data_dir / "run" / "redis.sock")) as redis:
                waiting = int(redis.xlen(RESULTS_KEY))
        except (RedisError, OSError):
            waiting = 0
        return waiting > 0 and succeeded >= (0.5 + share / 4) * NUM_LINES

    def finalize(self, share: float) -> bool:
        return job_row(self._url, self._job_id).status in ("finalizing", "completed")


@pytest.mark.slow
def test_all_processes_die_at_once(tmp_path, database_url):
    job = write_job(tmp_path / "in.jsonl", NUM_LINES, max_tokens=24)
    data_dir = tmp_path / "data"
    settings = {"BROS_DATABASE_URL": database_url, **SETTINGS}
    engine = simulated_engine(rows=32)
    up = start_up(data_dir, engine=engine, **settings)
    try:
        up.ready()
        with Api(up.state()["url"]) as api:
            batch_id = api.submit(job)
        stages = Stages(database_url, data_dir, batch_id)
        reached: list[Callable[[float], bool]] = [
            stages.ingest, stages.prepare, stages.engine, stages.record, stages.finalize,
        ]  # fmt: skip
        for stage in reached:
            for cut in range(CUTS):
                share = (cut + 1) / (CUTS + 1)
                wait_for(lambda stage=stage, share=share: stage(share), stage.__name__, timeout_s=120)
                cut_power(up)
                up = start_up(data_dir, engine=engine, **settings)
        up.ready()
        with Api(up.state()["url"]) as api:
            assert_every_line_once(api, batch_id, job, tmp_path / "data-model", database_url)
    finally:
        stop(up)
    left = [path.name for path in (data_dir / "files").iterdir() if path.name.startswith(".")]
    assert not left, "no half-written file is left"


def damage(path: Path) -> None:
    """Invert 64 bytes, in a log of commands where a command begins in the middle of it."""
    content = bytearray(path.read_bytes())
    start = max(content.find(b"\r\n*", len(content) // 2), 0)
    content[start : start + 64] = bytes(byte ^ 0xFF for byte in content[start : start + 64])
    path.write_bytes(content)


@pytest.mark.slow
def test_the_data_of_redis_are_damaged_after_a_power_cut(tmp_path):
    job = write_job(tmp_path / "in.jsonl", NUM_LINES, max_tokens=24)
    data_dir = tmp_path / "data"
    database_url = f"sqlite:///{data_dir / 'bros.db'}"
    up = start_up(data_dir, engine=simulated_engine(), **SETTINGS)
    try:
        up.ready()
        with Api(up.state()["url"]) as api:
            before = write_job(tmp_path / "before.jsonl", 20, max_tokens=8)
            ended_id = api.submit(before)
            assert_every_line_once(api, ended_id, before, tmp_path / "data-model", database_url)
            batch_id = api.submit(job)
        for share, kind in ((0.1, ".aof"), (0.4, "")):
            wait_for(
                lambda share=share: (
                    item_statuses(database_url, batch_id).get("succeeded", 0) >= share * NUM_LINES
                ),
                timeout_s=120,
            )
            cut_power(up)
            # At first the log of commands, then the snapshot before it as well.
            paths = [path for path in (data_dir / "redis").rglob(f"*{kind}") if path.is_file()]
            assert paths
            for path in paths:
                damage(path)
            up = start_up(data_dir, engine=simulated_engine(), **SETTINGS)
            up.ready()
            assert "Redis could not load its data and starts empty" in up.output()
            newest = max(data_dir.glob("redis-unreadable-*"), key=lambda path: path.stat().st_ctime_ns)
            assert str(newest) in up.output()
        with Api(up.state()["url"]) as api:
            for each, its_job in ((ended_id, before), (batch_id, job)):
                assert_every_line_once(api, each, its_job, tmp_path / "data-model", database_url)
    finally:
        stop(up)
