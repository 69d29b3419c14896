from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from sqlalchemy import Engine

from bros_batch.db.connections import open_database
from bros_batch.db.schema import upgrade
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import RunningEngine, running_engine
from tests.factories_text import make_text_model


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, text_model: Path) -> Iterator[RunningEngine]:
    directory = tmp_path_factory.mktemp("engine")
    with running_engine(directory, model=str(text_model), served_model_name=MODEL_NAME) as engine:
        yield engine


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory, text_model: Path, engine: RunningEngine) -> Iterator[Web]:
    """A server with an engine, but without an API key and without Redis."""
    with serving(web_settings(tmp_path_factory.mktemp("web"), text_model, engine_url=engine.url)) as web:
        yield web


@pytest.fixture(scope="module")
def own_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A database in SQLite for a server of a module, which the tests read and fill themselves."""
    url = f"sqlite:///{tmp_path_factory.mktemp('database') / 'bros.db'}"
    upgrade(url)
    database = open_database(url)
    yield database
    database.dispose()


@pytest.fixture
def client(web: Web) -> Iterator[OpenAI]:
    with web.openai() as client:
        yield client
