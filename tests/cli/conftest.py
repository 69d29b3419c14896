"""One `bros-batch up` on the simulated engine, shared by all tests of the session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.up_process import Up, running_up


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    # Steps are slow enough, and few enough items are queued, that a running job can be paused.
    queue = {"BROS_QUEUE_MAX_ITEMS": "200", "BROS_PUMP_INTERVAL_S": "0.2"}
    data_dir = tmp_path_factory.mktemp("cli") / "data"
    with running_up(data_dir, engine=("--runner", "simulated", "--simulated-step-s", "0.01"), **queue) as up:
        yield up
