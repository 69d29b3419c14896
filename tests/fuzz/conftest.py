"""One `up` with the demo model for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services
from tests.fuzz.target import Target
from tests.up_process import REAL, running_up

DEMO_MODEL = services.ROOT / "bros_batch" / "demo" / "model"


@pytest.fixture(scope="package")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The services, and what must hold for them after every test."""
    data_dir: Path = tmp_path_factory.mktemp("fuzz") / "data"
    with running_up(data_dir, "--model", str(DEMO_MODEL), "--embeddings", engine=REAL) as up:
        found = Target(up)
        yield found
        found.close()


@pytest.fixture
def watched(target: Target) -> Iterator[Target]:
    """The services, which are checked after the test."""
    yield target
    target.check()
