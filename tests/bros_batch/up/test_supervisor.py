"""The parts of `up`: lock, child processes and their logs, with real processes but no services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

import psutil
import pytest

from bros_batch.up.child import Child, ChildSpec
from bros_batch.up.child_log import LogPump, RotatingFile
from bros_batch.up.lock import AlreadyRunning, UpLock, UpState, read_state
from bros_batch.up.tether import tethered
from tests.services import PATIENCE_S, wait_for


def state(lock: UpLock, data_dir: Path, **changes) -> UpState:
    fields = dict.fromkeys(("model", "redis_url", "engine_url", "database_url"), "")
    fields |= {"url": "http://127.0.0.1:1", "data_dir": str(data_dir), "socket_dir": str(lock.socket_dir)}
    return UpState(pid=os.getpid(), started_at=0.0, **{**fields, **changes})


def test_one_up_per_data_directory(tmp_path):
    lock = UpLock(tmp_path)
    assert read_state(tmp_path) is None, "it has not written its state yet"
    lock.write(state(lock, tmp_path))
    assert read_state(tmp_path) == state(lock, tmp_path)
    with pytest.raises(
        AlreadyRunning, match=rf"already running on .* \(pid {os.getpid()}, http://127.0.0.1:1\)"
    ):
        UpLock(tmp_path)
    lock.release()
    assert read_state(tmp_path) is None
    UpLock(tmp_path).release()


def test_a_state_file_without_a_lock_does_not_count(tmp_path):
    lock = UpLock(tmp_path)
    lock.write(state(lock, tmp_path))
    left = (tmp_path / "run" / "up.json").read_bytes()
    lock.release()
    (tmp_path / "run" / "up.json").write_bytes(left)
    assert read_state(tmp_path) is None
    (tmp_path / "run" / "up.json").write_bytes(b'{"pid": 1, "from": "another version"}')
    assert read_state(tmp_path) is None


def test_the_lock_waits_for_a_child_that_holds_it(tmp_path):
    """This happens when `up` was killed and its Redis still writes its file."""
    lock = UpLock(tmp_path)
    child = subprocess.Popen(["sleep", "0.4"], pass_fds=(lock.fd,))
    lock.release()
    UpLock(tmp_path).release()
    assert child.poll() == 0, "it gets the lock only after the child has ended"


def test_sockets_have_short_names_in_deep_directories(tmp_path):
    deep = tmp_path.joinpath(*["a-rather-long-name"] * 8)
    deep.mkdir(parents=True)
    lock = UpLock(deep)
    assert len(os.fsencode(lock.socket_dir / "engine.sock")) <= 100
    assert lock.socket_dir.stat().st_mode & 0o777 == 0o700
    lock.write(state(lock, deep))
    (lock.socket_dir / "redis.sock").touch()
    left, state_left = lock.socket_dir, (deep / "run" / "up.json").read_bytes()
    lock._file.close()  # as if killed: nothing is cleaned up
    assert (deep / "run" / "up.json").read_bytes() == state_left
    successor = UpLock(deep)
    assert not left.exists(), "the files of a killed `up` are removed"
    successor.release()
    assert not successor.socket_dir.exists()


def test_a_log_is_bounded(tmp_path):
    log = RotatingFile(tmp_path / "a.log", max_bytes=100, kept=2)
    for number in range(100):
        log.write(b"%09d\n" % number)
    log.close()
    log.write(b"too late, and no error\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 400
    assert (tmp_path / "a.log").read_bytes().endswith(b"000000099\n")


async def test_the_console_gets_warnings_and_the_file_gets_all_lines(tmp_path):
    shown: list[str] = []
    file = RotatingFile(tmp_path / "a.log")
    pump = LogPump(file, deque(maxlen=3), shown.append, verbose=False)
    pump.data_received(b"[INFO] all well\n[WARNING] ca")
    pump.data_received(
        b"reful\nTraceback (most recent call last):\n  File x\nValueError: no\n" + b"x" * 200_000
    )
    pump.data_received(b"\n2026 ERROR broken")
    pump.connection_lost(None)
    file.close()
    assert shown == [
        "[WARNING] careful",
        "Traceback (most recent call last):",
        "ValueError: no",
        "2026 ERROR broken",
    ]
    assert (tmp_path / "a.log").read_bytes().startswith(b"[INFO] all well\n")
    assert pump.closed.done()


@contextlib.asynccontextmanager
async def kept(
    tmp_path: Path, code: str, messages: list[str], grace_s: float = 5.0, command=None, **env: str
):
    """Keep a child that runs `code`, or `command`, running until the block ends."""
    command = command or [sys.executable, "-u", "-c", code]
    spec = ChildSpec("child", command, {**os.environ, **env}, grace_s)
    child = Child(spec, tmp_path, announce=messages.append, show=lambda line: None, verbose=False)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, child.reap)
    starts: list[int | None] = []
    keeper = asyncio.create_task(child.keep_running(lambda: starts.append(child.pid)))
    try:
        yield child, starts
    finally:
        await child.stop()
        await keeper
        loop.remove_signal_handler(signal.SIGCHLD)


async def until(predicate) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not predicate():
            await asyncio.sleep(0.01)


async def test_a_child_that_dies_is_restarted_with_growing_delays(tmp_path):
    messages: list[str] = []
    async with kept(tmp_path, "raise SystemExit(7)", messages) as (child, _):
        await until(lambda: child.deaths == 3)
        assert child.last_code == 7
    assert ["exit code 7" in line for line in messages] == [True] * 3
    assert [line.rpartition("restarting in ")[2] for line in messages] == ["0.5 s", "1 s", "2 s"]


async def test_a_killed_child_is_reported_and_its_children_are_killed(tmp_path):
    messages: list[str] = []
    code = "import subprocess; p = subprocess.Popen(['sleep', '300']); print(p.pid); p.wait()"
    async with kept(tmp_path, code, messages) as (child, _):
        await until(lambda: child.tail)
        grandchild = psutil.Process(int(child.tail[-1]))
        os.kill(child.pid, signal.SIGKILL)
        await until(lambda: messages)
        assert "child died (killed by SIGKILL)" in messages[0]
        await until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


async def test_a_child_that_does_not_stop_is_killed_after_its_grace_period(tmp_path):
    messages: list[str] = []
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); signal.pause(); signal.pause()"
    async with kept(tmp_path, code, messages, grace_s=0.3) as (child, _):
        await until(lambda: child.tail)
    assert messages == ["child did not stop within 0.3 s; killing it"]
    assert child.pid is None


async def test_a_missing_program_counts_as_a_death(tmp_path):
    messages: list[str] = []
    async with kept(tmp_path, "", messages, command=["/no/such/program"]) as (child, _):
        await until(lambda: child.deaths)
        await until(lambda: child.tail)
    assert "No such file or directory" in child.tail[-1]
    assert "child died (exit code 1)" in messages[0]


async def test_a_child_that_the_system_cannot_start_is_retried(tmp_path):
    messages: list[str] = []
    open_before = psutil.Process().num_fds()
    async with kept(tmp_path, "", messages, TOO_LONG="x" * 5_000_000) as (child, _):
        await until(lambda: child.deaths == 2)
    assert [line.partition(" after ")[0] for line in messages] == [
        "child cannot be started (Argument list too long)"
    ] * 2
    assert psutil.Process().num_fds() <= open_before, "no pipe stays open"


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent death signal")
def test_a_tethered_process_dies_with_its_parent(tmp_path):
    code = (
        "import subprocess, sys, time; from bros_batch.up.tether import tethered\n"
        "p = subprocess.Popen(tethered(['sleep', '300'])); print(p.pid, flush=True); time.sleep(300)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_for(lambda: child.name() == "sleep")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_tethered_command_gets_its_arguments_and_its_exit_code():
    code = "import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(5)"
    done = subprocess.run(
        tethered([sys.executable, "-c", code, "a b", "--c"]), capture_output=True, text=True
    )
    assert json.loads(done.stdout) == ["a b", "--c"]
    assert done.returncode == 5
