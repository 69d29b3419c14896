"""One `up` with a model that computes, shared by all tests of clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bros_batch.settings import DEMO_MODEL_DIR
from tests.clients.model import make_model
from tests.clients.run import UP_FLAGS, Server
from tests.services import unavailable
from tests.up_process import REAL, start_up, stop

START_TIMEOUT_S = 600.0  # the first start on a machine compiles kernels


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (DEMO_MODEL_DIR / "config.json").exists():
        unavailable("the demo model")
    directory: Path = tmp_path_factory.mktemp("clients")
    model = make_model(directory / "model")
    flags = ("--model", str(model), "--served-model-name", "served", *UP_FLAGS)
    up = start_up(directory / "data", *flags, engine=REAL)
    try:
        up.ready(START_TIMEOUT_S)
        yield Server(up.state()["url"], "served", model)
    finally:
        stop(up)
