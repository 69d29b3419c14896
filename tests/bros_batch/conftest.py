from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from bros_batch.db.connections import open_database
from bros_batch.db.schema import upgrade
from bros_batch.settings import Settings
from bros_batch.text.tokenizer import ModelTokenizer, load_tokenizer
from tests.bros_batch.world import World
from tests.factories_text import make_text_model
from tests.services import PostgresServer, RedisServer


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_model(tmp_path_factory.mktemp("model"), max_model_len=512)


@pytest.fixture(scope="session")
def tokenizer(text_model: Path) -> ModelTokenizer:
    return load_tokenizer(str(text_model))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "bros.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_of_session: PostgresServer) -> str:
    url = postgres_of_session.create_database()
    upgrade(url)
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with the newest schema: a copy, which is made faster than by the migrations."""
    if request.param == "sqlite":
        path = tmp_path / "bros.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_of_session")
    url = server.create_database(like=request.getfixturevalue("postgres_template"))
    yield url
    server.drop_database(url)


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """A database with the newest schema, on SQLite and on PostgreSQL."""
    opened = open_database(database_url)
    yield opened
    opened.dispose()


@pytest.fixture
def options() -> dict[str, Any]:
    """Settings that differ from the defaults. A test overrides this fixture."""
    return {}


@pytest.fixture
def settings(
    tmp_path: Path, database_url: str, redis_server: RedisServer, text_model: Path, options: dict[str, Any]
) -> Settings:
    values: dict[str, Any] = {
        "data_dir": tmp_path / "data",
        "database_url": database_url,
        "redis_url": redis_server.url,
        "model": str(text_model),
        "served_model_name": "sim",
        **options,
    }
    return Settings(**values)


@pytest.fixture
def world(database: Engine, redis_server: RedisServer, settings: Settings) -> Iterator[World]:
    redis = redis_server.cli()
    yield World(database, redis, settings)
    redis.close()
