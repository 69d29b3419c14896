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

import httpx

from bros_batch.addresses import base_url, without_password
from bros_batch.settings import Settings
from bros_batch.up import service_commands
from bros_batch.up.announcements import FIRST_NOTE_S, Say
from bros_batch.up.child import Child, ChildSpec
from bros_batch.up.gguf_model import find_gguf_model
from bros_batch.up.lock import UpLock, UpState
from bros_batch.up.probes import WebProbe, auth_headers, redis_answers
from bros_batch.up.process_identity import start_ticks
from bros_batch.up.redis_data import is_unreadable, put_aside
from bros_batch.up.service_watches import service_watches
from bros_batch.up.watch import PROBE_TIMEOUT_S

# A service that dies this often before everything has been ready will not recover by itself.
MAX_DEATHS_AT_START = 3
# There is no notification when another process becomes ready, so it is polled.
POLL_INTERVAL_S = 0.1
# A wait that has been explained is explained again at this interval.
NEXT_NOTES_S = 30.0
STATE_RETRY_S = 2.0
# Some wrappers send one Ctrl-C of a terminal twice.
SAME_CTRL_C_S = 0.5

_STOP_ORDER = (("web", "beat"), ("engine",), ("worker",), ("redis",))


@dataclass(frozen=True, slots=True)
class UpOptions:
    """Options of `up`. `engine_args` go to the engine unchanged. `verbose` shows every line of every service."""

    workers: int = 2
    engine_args: Sequence[str] = ()
    verbose: bool = False


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
        self._watchers: list[asyncio.Task[None]] = []
        self._state_writer: asyncio.Task[None] | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._stop_requested_s: float | None = None
        self._failure: str | None = None
        headers = auth_headers(settings.api_key)
        # It speaks HTTP without TLS, and to read the machine's certificates would take a tenth of a second.
        self._http = httpx.AsyncClient(headers=headers, trust_env=False, verify=False, timeout=5.0)
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
            start_ticks=start_ticks(os.getpid()),
        )
        self._web = WebProbe(self._http, self._state.url)

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
                repair=self._put_redis_data_aside if spec.name == "redis" else lambda child: None,
            )
        if "redis" in self._children:
            self._keep("redis")
            await self._wait_until(self._redis_answers, lambda: "Redis, which loads its data")
        for name in self._children:
            if name != "redis" and not self._stop.is_set():
                self._keep(name)
        watches = service_watches(
            self._settings, self._children, self._web, self._redis_answers, partial(self._say, "up")
        )
        self._watchers = [asyncio.create_task(watch.run()) for watch in watches]
        await self._wait_until(self._web.is_ready, self._what_is_missing)
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

    async def _wait_until(self, is_ready: Callable[[], Awaitable[bool]], what: Callable[[], str]) -> None:
        """Poll until `is_ready` returns true or a stop is requested."""
        started_s = time.monotonic()
        note_s = started_s + FIRST_NOTE_S
        while not self._stop.is_set() and not await is_ready():
            now_s = time.monotonic()
            if now_s > note_s:
                note_s = now_s + NEXT_NOTES_S
                self._say("up", f"waiting for {what()} ({now_s - started_s:.0f} s so far; see {self._logs})")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), POLL_INTERVAL_S)

    def _what_is_missing(self) -> str:
        """Name what the services are waiting for, as the latest answer of the web process says."""
        problems = self._web.problems
        if "engine" not in problems:
            return " and ".join(map(self._named, problems)) or "the services"
        first = "compiles kernels"
        if find_gguf_model(self._settings.model) is not None:
            first = "unpacks its weights and compiles kernels"
        return f"the engine, which loads {self._state.model} and, at its first start on a CPU, {first}"

    def _named(self, service: str) -> str:
        """Name a service that is not ready. Redis may be one that `up` did not start, so its address matters."""
        if service != "redis" or "redis" in self._children:
            return service
        # redis-py: "Error 111 connecting to localhost:6379. Connection refused."
        reason = self._web.problems[service].rstrip(".").rpartition(". ")[2]
        return f"Redis at {without_password(self._settings.redis_url)} ({reason})"

    async def _redis_answers(self) -> bool:
        answers = await redis_answers(self._lock.socket_dir / "redis.sock", PROBE_TIMEOUT_S)
        if answers:
            self._children["redis"].has_answered = True
        return answers

    def _put_redis_data_aside(self, redis: Child) -> None:
        """If Redis has ended because it cannot load its data, let it start without."""
        if redis.has_answered or not is_unreadable(redis.tail):
            return
        try:
            aside = put_aside(self._settings.data_dir / "redis")
        except OSError as error:
            self._say("up", f"Redis cannot load its data, and they cannot be put aside ({error.strerror})")
            return
        self._say(
            "up",
            f"Redis could not load its data and starts empty; nothing is lost, and the old data are kept in {aside}",
        )

    def _on_change(self) -> None:
        """Publish the state after a child has started or died, and react to deaths."""
        children = {name: child.pid for name, child in self._children.items() if child.pid is not None}
        self._state = dataclasses.replace(self._state, children=children)
        self._write_state()
        if self._stop.is_set():
            return
        if self._state.ready:
            if len(children) < len(self._children) and (self._recovery is None or self._recovery.done()):
                self._recovery = asyncio.create_task(self._recover())
            return
        for name, child in self._children.items():
            if child.deaths >= MAX_DEATHS_AT_START or (child.deaths and child.last_code == 2):
                # A usage error is one line, after many lines of usage.
                last, title = (1, "It says") if child.last_code == 2 else (8, "Its last lines")
                last_lines = "".join(f"\n    {line}" for line in list(child.tail)[-last:])
                log = self._logs / f"{name}.log"
                self._failure = f"{name} does not start; see {log}. {title}:{last_lines}"
                self._stop.set()

    def _write_state(self) -> None:
        """Write up.json, and try again later if the disk is full."""
        try:
            self._lock.write(self._state)
        except OSError as error:
            if self._state_writer is None or self._state_writer.done():
                self._say(
                    "up", f"run/up.json cannot be written ({error.strerror}); trying again until it can"
                )
                self._state_writer = asyncio.create_task(self._write_state_later())

    async def _write_state_later(self) -> None:
        while True:
            await asyncio.sleep(STATE_RETRY_S)
            with contextlib.suppress(OSError):
                self._lock.write(self._state)
                return

    async def _recover(self) -> None:
        await self._wait_until(self._all_ready, self._what_is_missing)
        if not self._stop.is_set():
            self._say("up", "all services are ready again")

    async def _all_ready(self) -> bool:
        return all(child.pid is not None for child in self._children.values()) and await self._web.is_ready()

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
                child.kill_for_good()

    async def _drain(self) -> None:
        self._stop.set()
        for watcher in self._watchers:
            watcher.cancel()
        for child in self._children.values():
            child.resume()  # a frozen service would keep those waiting that stop before it
        for names in _STOP_ORDER:
            await asyncio.gather(*(self._children[name].stop() for name in names if name in self._children))
            self._on_change()
        await asyncio.gather(*self._keepers)
        if self._recovery is not None:
            await self._recovery
        if self._state_writer is not None:
            self._state_writer.cancel()
