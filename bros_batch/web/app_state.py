"""What the routes work with: made once when the server starts, found through the request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from bros_batch.db.connections import reading, writing
from bros_batch.settings import Settings
from bros_batch.text.tokenizer import ModelText, load
from bros_batch.web.engine_link import EngineLink
from bros_batch.web.errors import ApiError, database_unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WebServices:
    """The server's settings, database and engine."""

    settings: Settings
    database: Engine
    engine: EngineLink
    started_at: int

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` in a read transaction on a thread. ApiError 503 when the database is not there."""
        return await run_in_threadpool(self._run, query, False)

    async def write(self, query: Callable[[Connection], T]) -> T:
        """Run `query` in a write transaction on a thread, and commit."""
        return await run_in_threadpool(self._run, query, True)

    def _run(self, query: Callable[[Connection], T], writes: bool) -> T:
        try:
            with (writing if writes else reading)(self.database) as connection:
                return query(connection)
        except DBAPIError as error:
            if _is_absence(error):
                logger.error("the database does not answer: %s", error.orig)
                raise database_unavailable() from error
            raise

    async def text(self) -> ModelText:
        """The model's tokeniser, loaded on first use."""
        try:
            return await run_in_threadpool(load, self.settings.model)
        except Exception as error:
            logger.error("the tokeniser of %s cannot be loaded: %s", self.settings.model, error)
            raise ApiError(
                503, "The model's tokeniser cannot be loaded.", code="model_unavailable"
            ) from error


def _is_absence(error: DBAPIError) -> bool:
    """Whether trying again may help. SQLite calls a missing table operational too; that is a fault of ours."""
    if error.connection_invalidated:
        return True
    return type(error.orig).__name__ == "OperationalError" and "no such" not in str(error.orig)


def services_of(connection: HTTPConnection) -> WebServices:
    """The services of the app that answers this request."""
    services = connection.app.state.services
    assert isinstance(services, WebServices)
    return services
