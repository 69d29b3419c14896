"""Guarantee: a full disk stops a job only until there is space again, and whoever wanted to store something is told.

The data directory is a small file system in memory, and its directory of files is another one. Tests without the right
to mount one are skipped; tests/bros_batch/jobs/test_full_disk.py has its own means.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

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
from tests.up_process import running_up

NUM_LINES = 1000
SETTINGS = {
    **IMPATIENT,
    "BROS_QUEUE_MAX_ITEMS": "100",
    "BROS_INGEST_GROUP_LINES": "4",
}


def mount(options: str, directory: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(directory)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a file system")


@contextlib.contextmanager
def small_disk(directory: Path, num_bytes: int) -> Iterator[Path]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    mount(f"size={num_bytes},mode=700", directory)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextlib.contextmanager
def full(directory: Path, leaving: int = 0) -> Iterator[None]:
    """Fill the file system of a directory to the last byte, or up to the last `leaving` bytes."""
    ballast = directory / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            for piece in (b"x" * 2**20, b"x" * 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(piece)
            file.truncate(file.tell() - leaving)
        yield
    finally:
        ballast.unlink()


@pytest.mark.slow
def test_the_disk_of_the_database_and_of_redis_is_full(tmp_path):
    job = write_job(tmp_path / "in.jsonl", NUM_LINES, max_tokens=24)
    with small_disk(tmp_path / "data", 200 * 2**20) as data_dir:
        database_url = f"sqlite:///{data_dir / 'bros.db'}"
        with (
            running_up(data_dir, engine=simulated_engine(rows=32), **SETTINGS) as up,
            Api(up.state()["url"]) as api,
        ):
            children = up.state()["children"]
            with full(data_dir):
                answer = api.upload(job.path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
            file_id = api.upload(job.path).json()["id"]
            # Ingest takes less time than filling a disk, so it begins when there is room for a part of the lines.
            with full(data_dir, leaving=2**20):
                batch_id = api.create_batch(file_id).json()["id"]
                wait_for(lambda: "ingest gave up for now" in up.output(), "ingest gave up")
                row = job_row(database_url, batch_id)
                assert row.status == "validating" and row.total < NUM_LINES
            wait_for(lambda: api.num_done(batch_id) > NUM_LINES // 10, "results", timeout_s=120)
            seen = len(up.output())
            with full(data_dir):
                # Redis accepts no writes either, and then the worker gets no tasks.
                wait_for(lambda: "MISCONF" in up.output()[seen:], "Redis rejects writes")
                assert item_statuses(database_url, batch_id)["succeeded"] < NUM_LINES
            assert_every_line_once(api, batch_id, job, tmp_path / "data-model", database_url)
            assert "raised unexpected" not in up.output(), up.output()
            assert up.state()["children"] == children, "no process has ended"


@pytest.mark.slow
def test_the_disk_of_the_files_is_full(tmp_path):
    job = write_job(tmp_path / "in.jsonl", NUM_LINES, max_tokens=24)
    input_bytes = job.path.stat().st_size
    data_dir = tmp_path / "data"
    database_url = f"sqlite:///{tmp_path / 'bros.db'}"
    data_dir.mkdir(mode=0o700)
    with (
        small_disk(data_dir / "files", input_bytes + 64 * 1024),
        running_up(
            data_dir, engine=simulated_engine(rows=64), BROS_DATABASE_URL=database_url, **SETTINGS
        ) as up,
        Api(up.state()["url"]) as api,
    ):
        batch_id = api.submit(job)
        answer = api.upload(job.path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
        wait_for(lambda: "finalize gave up for now" in up.output(), "finalize gave up", timeout_s=120)
        assert os.strerror(errno.ENOSPC) in up.output()
        assert job_row(database_url, batch_id).status == "finalizing"
        mount(f"remount,size={32 * 2**20}", data_dir / "files")
        assert_every_line_once(api, batch_id, job, tmp_path / "data-model", database_url)
        assert "raised unexpected" not in up.output(), up.output()
