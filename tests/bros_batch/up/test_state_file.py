"""`run/up.json` is never believed without a check, and logs survive a full disk."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from bros_batch.settings import Settings
from bros_batch.up.child_log import RotatingFile
from bros_batch.up.doctor import Health, examine
from bros_batch.up.lock import UpLock, read_state
from bros_batch.up.process_identity import start_ticks
from tests.bros_batch.up.test_supervisor import state
from tests.full_disk import file_size_limit


def test_services_that_have_ended_are_left_out(tmp_path):
    lock = UpLock(tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    with subprocess.Popen(["sleep", "300"]) as alive:
        children = {"web": alive.pid, "engine": dead.pid, "worker": os.getppid()}
        lock.write(state(lock, tmp_path, children=children))
        seen = read_state(tmp_path)
        alive.kill()
    assert seen is not None and seen.children == {"web": alive.pid}, "nor are those of another process"
    lock.release()


@pytest.mark.skipif(start_ticks(os.getpid()) is None, reason="needs /proc")
def test_a_process_that_has_got_the_id_of_a_dead_up_is_not_believed(tmp_path):
    lock = UpLock(tmp_path)
    lock.write(state(lock, tmp_path, start_ticks=start_ticks(os.getpid())))
    assert read_state(tmp_path) is not None
    lock.write(state(lock, tmp_path, start_ticks=start_ticks(os.getpid()) - 1))
    assert read_state(tmp_path) is None
    lock.release()


def test_a_state_that_cannot_be_written_is_an_error_and_the_old_one_stays_whole(tmp_path):
    lock = UpLock(tmp_path)
    lock.write(state(lock, tmp_path))
    with file_size_limit(20), pytest.raises(OSError, match="File too large"):
        lock.write(state(lock, tmp_path, children={"web": os.getpid()}))
    assert json.loads((tmp_path / "run" / "up.json").read_text())["children"] == {}
    assert not list((tmp_path / "run").glob("*.tmp"))
    lock.release()


@pytest.mark.parametrize(("is_ready", "health"), [(False, Health.NOTE), (True, Health.BROKEN)])
def test_the_doctor_calls_services_broken_only_once_up_was_ready(tmp_path, monkeypatch, is_ready, health):
    monkeypatch.delenv("BROS_URL", raising=False)
    lock = UpLock(tmp_path)
    urls = {"engine_url": f"unix:{tmp_path}/engine.sock", "url": "http://127.0.0.1:1"}
    lock.write(state(lock, tmp_path, ready=is_ready, **urls))
    found = {finding.name: finding for finding in examine(Settings(data_dir=tmp_path))}
    lock.release()
    for name in ("engine", "web"):
        assert found[name].health is health
        assert (found[name].detail == "still starting") is not is_ready
        assert f"{name}.log" in found[name].fix


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff" * 100, b'{"pid": "x"}', b'{"pid": 1}']
)
def test_a_damaged_state_file_does_not_count(tmp_path, content):
    lock = UpLock(tmp_path)
    (tmp_path / "run" / "up.json").write_bytes(content)
    assert read_state(tmp_path) is None
    lock.release()
    UpLock(tmp_path).release()


def test_a_log_continues_when_a_full_disk_has_space_again(tmp_path):
    log = RotatingFile(tmp_path / "a.log", max_bytes=100)
    log.write(b"before\n")
    with file_size_limit(10):
        log.write(b"cut off\n")
        log.write(b"lost\n")
    log.write(b"after\n")
    log.close()
    assert (tmp_path / "a.log").read_bytes() == b"before\ncut\nafter\n"


def test_a_log_that_cannot_be_made_or_rotated_loses_lines_only(tmp_path):
    log = RotatingFile(tmp_path / "no" / "a.log", max_bytes=10, kept=1)
    log.write(b"lost\n")
    (tmp_path / "no").mkdir()
    log.write(b"written after all\n")
    (tmp_path / "no" / "a.log.1").mkdir()  # nothing can take its name
    log.write(b"lost, too\n")
    (tmp_path / "no" / "a.log.1").rmdir()
    log.write(b"and again\n")
    log.close()
    assert (tmp_path / "no" / "a.log").read_bytes().endswith(b"and again\n")
