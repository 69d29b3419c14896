"""Where services run is noted for commands elsewhere, and nothing depends on the notes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bros_batch.client.server_url import where_it_runs
from bros_batch.up.known_data_dirs import forget, remember, running_services
from bros_batch.up.lock import UpLock
from tests.bros_batch.up.test_supervisor import state


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    data_dir = tmp_path / os.fsdecode(b"caf\xe9\n")
    lock = UpLock(data_dir)
    lock.write(state(lock, tmp_path))
    remember(data_dir)
    assert len(running_services()) == 1
    forget(data_dir)
    assert not running_services()
    lock.release()


def test_a_server_that_does_not_respond_is_not_named_as_another_one(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    lock = UpLock(data_dir)
    remember(data_dir)
    named = state(lock, data_dir, url="http://127.0.0.1:8123")
    lock.write(named)
    assert where_it_runs("http://127.0.0.1:9").endswith("export BROS_URL=http://127.0.0.1:8123")
    starting = where_it_runs(named.url)
    assert starting.startswith("It is starting; ") and f"--data-dir {data_dir}" in starting
    lock.write(state(lock, data_dir, url=named.url, ready=True))
    assert where_it_runs(named.url).startswith("It does not respond at the moment; ")
    lock.release()
    assert "bros-batch up" in where_it_runs(named.url)
