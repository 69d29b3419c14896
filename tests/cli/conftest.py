"""One `bros-batch up` on the simulated engine, shared by all tests of the session, and commands that start at once."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterator

import pytest

import cli.jobs
from tests.cli.test_jobs import Cli
from tests.forked_python import ForkedPython
from tests.up_process import Up, running_up


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    # Steps are slow enough, and few enough items are queued, that a running job can be paused.
    queue = {"BROS_QUEUE_MAX_ITEMS": "200", "BROS_PUMP_INTERVAL_S": "0.2"}
    data_dir = tmp_path_factory.mktemp("cli") / "data"
    with running_up(data_dir, engine=("--runner", "simulated", "--simulated-step-s", "0.01"), **queue) as up:
        yield up


@pytest.fixture(scope="session", autouse=True)
def commands_are_forked() -> Iterator[None]:
    """From a process that has loaded them: what they load takes longer than what they do."""
    if sys.platform != "linux":
        yield
        return
    commands = [f"cli.jobs.{module.name}" for module in pkgutil.iter_modules(cli.jobs.__path__)]
    used = ("bros_batch.client.http_client", "rich.progress", "rich.table")
    with ForkedPython("cli.main", *commands, *used) as python, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cli, "subprocess", python.subprocess)
        yield
