"""State shared by all routes: settings, database and engine connection, created when the server starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request

from bros_batch.db.api_keys import list_api_keys
from bros_batch.db.connections import is_disk_full, reading, writing
from bros_batch.openai_api.validation import LenientPart, check_strict
from bros_batch.settings import Settings
from bros_batch.text.tokenizer import ModelTokenizer, load_tokenizer
from bros_batch.web.api_key import KeyRing
from bros_batch.web.bounded_threads import BoundedThreads
from bros_batch.web.dispatcher import Dispatcher
from bros_batch.web.engine_link import EngineLink
from bros_batch.web.errors import ApiError, database_unavailable, disk_full
from bros_batch.web.ignored_fields import MAX_NAMES, note_ignored
from bros_batch.web.item_outputs import ItemOutputs
from bros_batch.web.job_rates import JobRates
from bros_batch.web.login_attempts import LoginAttempts
from bros_batch.web.rate_limits import RateLimits
from bros_batch.web.request_body import JsonReader
from bros_batch.web.session_cookie import Sessions
from bros_batch.web.shared_answer import SharedAnswer
from bros_batch.web.shared_capacity import SharedCapacity
from bros_batch.web.webhooks.hosts import WebhookHosts

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Long prompts that are tokenized at once: each takes much memory.
LONG_PROMPTS = 2
# Stored conversations that are read at once, for the same reason.
CONVERSATIONS = 2
# Each holds an open file and up to half a megabyte.
MAX_UPLOADS = 64

# SQLAlchemy's pool has 15 connections.
DATABASE_THREADS = 15
READ_TIMEOUT_S = 10.0
KEYS_TIMEOUT_S = 2.0  # every request waits for it
WRITE_TIMEOUT_S = 30.0  # as long as a write waits for the lock of SQLite


def _database_threads() -> BoundedThreads:
    return BoundedThreads(DATABASE_THREADS, "database")


@dataclass(frozen=True, slots=True)
class AppState:
    """The server's settings, database, engine and dispatcher of tasks. `started_at` is in Unix seconds.

    `uploads` is the number of files that may be received at once, `problems` what keeps the server from being ready.
    """

    settings: Settings
    database: Engine
    engine: EngineLink
    started_at: int
    dispatcher: Dispatcher = field(default_factory=Dispatcher)
    threads: BoundedThreads = field(default_factory=_database_threads)
    uploads: SharedCapacity = field(default_factory=lambda: SharedCapacity(MAX_UPLOADS))
    long_prompts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LONG_PROMPTS))
    rates: JobRates = field(default_factory=JobRates)
    conversations: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONVERSATIONS))
    login_attempts: LoginAttempts = field(default_factory=LoginAttempts)
    problems: SharedAnswer[dict[str, str | None]] = field(default_factory=SharedAnswer)
    keys: KeyRing = field(init=False)
    sessions: Sessions = field(init=False)
    rate_limits: RateLimits = field(init=False)
    item_outputs: ItemOutputs = field(init=False)
    webhook_hosts: WebhookHosts = field(init=False)
    _json: JsonReader = field(init=False)
    # The tokenizer, once it is loaded.
    _loaded: list[ModelTokenizer] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        keys = KeyRing(self.settings.api_key, lambda: self.read(list_api_keys, KEYS_TIMEOUT_S))
        made = {
            "keys": keys,
            "sessions": Sessions(keys, self.settings.api_key),
            "rate_limits": RateLimits(self.settings.resolved_redis_url),
            "item_outputs": ItemOutputs(self.settings.resolved_redis_url),
            "webhook_hosts": WebhookHosts(self.settings.webhook_hosts),
            "_json": JsonReader(self.settings.max_body_bytes),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    async def parsed(self, request: Request, parse: Callable[[bytes], T]) -> T:
        """Read the JSON body of `request` and return what `parse` makes of it (see `JsonReader`).

        Its unknown fields are noted, or are an error if the settings say so. Raises RequestError.
        """

        def parse_and_look(raw: bytes) -> tuple[T, list[str]]:  # on a thread if the body is large
            parsed = parse(raw)
            return parsed, self.ignored_in(parsed) if isinstance(parsed, LenientPart) else []

        parsed, ignored = await self._json.read(request, parse_and_look)
        note_ignored(request, ignored)
        return parsed

    def ignored_in(self, parsed: LenientPart) -> list[str]:
        """Return the first fields of a body that have no effect. Raises RequestError for unknown ones if the settings
        are strict."""
        if self.settings.strict:
            check_strict(parsed)
        return list(islice(parsed.ignored_names(), MAX_NAMES + 1))

    async def read(self, query: Callable[[Connection], T], timeout_s: float | None = None) -> T:
        """Run `query` in a read transaction on a thread. Raises ApiError 503 if the database is unavailable or does not
        answer in time."""
        return await self._in_time(lambda: self._run(query, False), timeout_s or READ_TIMEOUT_S)

    async def write(self, query: Callable[[Connection], T]) -> T:
        """Run `query` in a write transaction on a thread, and commit it. Raises ApiError 503 like `read`; a write that
        took too long may still be committed."""
        return await self._in_time(lambda: self._run(query, True), WRITE_TIMEOUT_S)

    async def _in_time(self, call: Callable[[], T], timeout_s: float) -> T:
        try:
            return await self.threads.run(call, timeout_s)
        except TimeoutError:
            logger.error("the database has not answered for %g s", timeout_s)
            raise database_unavailable(f"The database has not answered for {timeout_s:g} s") from None

    def _run(self, query: Callable[[Connection], T], writes: bool) -> T:
        try:
            with writing(self.database, durable=True) if writes else reading(self.database) as connection:
                return query(connection)
        except DBAPIError as error:
            if is_disk_full(error):
                logger.error("the disk of the database is full: %s", error.orig)
                raise disk_full() from error
            if _is_unavailable(error):
                logger.error("the database does not respond: %s", error.orig)
                raise database_unavailable() from error
            raise

    async def tokenizer(self) -> ModelTokenizer:
        """Return the model's tokenizer, which is loaded on first use."""
        if self._loaded:
            return self._loaded[0]
        settings = self.settings
        try:
            tokenizer = await run_in_threadpool(
                load_tokenizer, settings.model, settings.tool_call_parser, settings.reasoning_parser
            )
        except Exception as error:
            logger.error("cannot load the tokenizer of %s: %s", self.settings.model, error)
            message = "The model's tokenizer cannot be loaded."
            raise ApiError(503, message, code="model_unavailable") from error
        self._loaded.append(tokenizer)
        return tokenizer


def _is_unavailable(error: DBAPIError) -> bool:
    """Return whether a retry may succeed. A missing table is an OperationalError in SQLite too, but a bug of ours."""
    if error.connection_invalidated:
        return True
    return type(error.orig).__name__ == "OperationalError" and "no such" not in str(error.orig)


def app_state(connection: HTTPConnection) -> AppState:
    """Return the state of the application that serves `connection`."""
    state = connection.app.state.app_state
    assert isinstance(state, AppState)
    return state
