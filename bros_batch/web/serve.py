"""The web process from its start to its end. `python -m bros_batch.web` runs it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import logging
import resource
import sys

import uvicorn
from fastapi import FastAPI
from sqlalchemy.exc import DBAPIError

from bros_batch.db.connections import open_database
from bros_batch.db.schema import SchemaError, check_schema
from bros_batch.settings import Settings, SettingsError, get_settings
from bros_batch.up.preflight import StartupError, check_exposure
from bros_batch.web.app import create_app
from bros_batch.web.http_protocol import with_limits
from engine.wire.framing import Address

logger = logging.getLogger(__name__)

GRACE_S = 10
KEEP_ALIVE_S = 30
# Parameters of glibc's mallopt.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
LARGE_BLOCK_BYTES = 128 * 1024

FILES_PER_CONNECTION = 2  # its socket, and a file that is sent or received over it
OTHER_FILES = 200  # the database, the engine, Redis, modules that are being imported
STARTUP_FAILED = 3  # the exit status of uvicorn's own command


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then give open responses GRACE_S seconds to finish.

    Raises StartupError if the settings or the database do not allow a start.
    """
    check_exposure(settings)
    _check_engine_url(settings)
    _check_database(settings)
    server = make_server(create_app(settings), settings, allowed_connections(settings.max_connections))
    _return_memory_early()
    # Everything that exists now stays, so the garbage collector need not look at it again: that takes a tenth of a
    # second each time.
    gc.collect()
    gc.freeze()
    gc.enable()
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILED)


def make_server(app: FastAPI, settings: Settings, max_connections: int) -> uvicorn.Server:
    """Return the server of `app` at the host and port of the settings, with at most `max_connections`."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop" if importlib.util.find_spec("uvloop") else "asyncio",
        http=with_limits(max_connections),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    server = uvicorn.Server(config)
    app.state.is_stopping = lambda: server.should_exit
    return server


def allowed_connections(wanted: int) -> int:
    """Allow this process the files that `wanted` connections need. Returns how many connections the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OTHER_FILES + FILES_PER_CONNECTION * wanted
    if hard != resource.RLIM_INFINITY and needed > hard:
        allowed = max(1, (hard - OTHER_FILES) // FILES_PER_CONNECTION)
        logger.warning(
            "serving at most %d connections: this system allows %d open files (ulimit -n)", allowed, hard
        )
        needed, wanted = hard, allowed
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return wanted


def _return_memory_early() -> None:
    """Make the C library return large blocks to the system when they are freed.

    By default it keeps up to 64 MB in each of many arenas, because a block of that size may be needed again.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        mallopt(M_ARENA_MAX, 2)


def _check_engine_url(settings: Settings) -> None:
    try:
        Address.parse(settings.resolved_engine_url)
    except ValueError as error:
        raise StartupError(f"BROS_ENGINE_URL: {error}.") from None


def _check_database(settings: Settings) -> None:
    """Check the schema, which an operator has to fix. An unreachable database may come back and is ignored."""
    engine = open_database(settings.resolved_database_url)
    try:
        check_schema(engine)
    except SchemaError as error:
        raise StartupError(f"{error}.") from None
    except DBAPIError:
        pass
    finally:
        engine.dispose()


def main() -> None:
    """Serve; exit with status 1 and one sentence if the server cannot start."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("bros_batch", "bros.audit"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        serve(get_settings())
    except (SettingsError, StartupError) as error:
        sys.exit(str(error))
