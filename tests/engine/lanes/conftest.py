"""A Redis for the tests of a module, empty at the beginning of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.services import RedisServer, redis_server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    server.flush()
    with server.cli() as client:
        yield client
