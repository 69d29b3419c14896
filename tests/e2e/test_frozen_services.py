"""`up` with services that do not answer, a state file that cannot be written, and a console that nobody reads."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_up import SERVICES, assert_nothing_is_left, run_job
from tests.services import wait_for
from tests.up_process import Up, running_up, start_up, stop

IMPATIENT = {"BROS_RESTART_AFTER_S": "2"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("frozen") / "data", **IMPATIENT) as up:
        yield up


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_frozen_service_is_restarted(up: Up, name: str) -> None:
    victim = up.state()["children"][name]
    os.kill(victim, signal.SIGSTOP)
    wait_for(lambda: up.state()["children"].get(name) not in (None, victim), f"a new {name}")
    wait_for(up.is_ready, "readiness")
    assert f"{name} has been silent for" in up.output()
    assert run_job(up.state()["url"])["request_counts"]["completed"] == 20


@pytest.mark.slow
def test_a_state_file_that_cannot_be_written_is_written_when_it_can(up: Up) -> None:
    before = up.state()["children"]["beat"]
    in_the_way = up.data_dir / "run" / "up.tmp"
    in_the_way.mkdir()
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: "run/up.json cannot be written" in up.output(), "the note")
    assert up.is_ready()
    in_the_way.rmdir()
    wait_for(lambda: up.state()["children"].get("beat") not in (None, before), "the new process")


@pytest.mark.slow
def test_frozen_services_stop_with_the_others(up: Up) -> None:
    """The last test of this `up`."""
    for pid in up.state()["children"].values():
        os.kill(pid, signal.SIGSTOP)
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(120) == 0
    assert "did not stop within" not in up.output()
    assert_nothing_is_left(up)


@pytest.mark.slow
def test_a_console_that_nobody_reads_holds_nothing_up(tmp_path: Path) -> None:
    unread, console = os.pipe()
    os.set_blocking(console, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(console, bytes(1))
    os.set_blocking(console, True)
    up = start_up(tmp_path / "data", "--verbose", console=console)
    os.close(console)
    assert run_job(up.ready()["url"])["request_counts"]["completed"] == 20
    up.process.send_signal(signal.SIGTERM)
    try:
        assert up.process.wait(120) == 0
    except subprocess.TimeoutExpired:
        pytest.fail(f"up does not end\n{up.last_lines()}")
    os.close(unread)
    stop(up)
    assert_nothing_is_left(up)
