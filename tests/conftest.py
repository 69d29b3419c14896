"""Services shared by the tests of several packages. They start when a test first needs them."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import services

gc.disable()  # until the tests are collected, which makes millions of objects that stay
# As in the engine; must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if shutil.which("nvidia-smi") is None:
    # Must be set before triton is imported. Kernels then run on the CPU, slowly.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# A shell starts its background jobs with SIGINT ignored, and the processes of the tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine makes any example slow.
hypothesis.settings.register_profile("bros", deadline=None)
hypothesis.settings.load_profile("bros")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        from tests.distribution import in_order

        items[:] = in_order(items)


def pytest_collection_finish() -> None:
    """Exempt what was collected from garbage collections. It lives to the end, and each would look at all of it."""
    gc.enable()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    from tests.distribution import Distribution

    return Distribution(config, log)


@pytest.fixture(scope="session")
def redis_of_session() -> Iterator[services.RedisServer]:
    with services.redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_of_session() -> Iterator[services.PostgresServer]:
    with services.postgres_server() as server:
        yield server


@pytest.fixture
def redis_server(redis_of_session: services.RedisServer) -> services.RedisServer:
    """A running, empty Redis. A test may flush and restart it."""
    redis_of_session.flush()
    return redis_of_session


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database. Each test that uses it runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'bros.db'}"
        return
    server: services.PostgresServer = request.getfixturevalue("postgres_of_session")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    """The URL of a database for services, which make its schema."""
    return empty_database_url
