"""A complete engine in this process: the real loop, endpoints and scheduler around a simulated or a given runner."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.__main__ import assemble, make_runner
from engine.config import EngineConfig
from engine.core.scheduler import Scheduler
from engine.lanes.io_thread import IoThread
from engine.runner.base import ModelRunner
from engine.wire.client import EngineClient


@dataclasses.dataclass
class RunningEngine:
    """`url` is the address of the socket; `drain()` begins a shutdown, as SIGTERM would."""

    url: str
    runner: ModelRunner
    scheduler: Scheduler
    io: IoThread
    thread: threading.Thread

    def drain(self) -> None:
        self.io.request_drain()


@contextmanager
def running_engine(
    directory: Path, runner: ModelRunner | None = None, *, rejects_late: bool = False, **overrides: object
) -> Iterator[RunningEngine]:
    """Run an engine on `directory`/engine.sock until the block ends. Overrides are fields of EngineConfig.

    With `rejects_late` it rejects chats that it could not answer in time. It is off by default, so that other tests do
    not depend on how fast the machine is.
    """
    config = EngineConfig(
        model="sim", served_model_name="sim", listen=f"unix://{directory / 'engine.sock'}", runner="simulated"
    )
    config = dataclasses.replace(config, **overrides)  # type: ignore[arg-type]
    runner = runner or make_runner(config)
    loop, io = assemble(config, runner)
    loop.publish = io.publish if rejects_late else None
    io.start()
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    try:
        yield RunningEngine(config.listen, runner, loop.scheduler, io, thread)
    finally:
        io.request_drain()
        io.join()
        thread.join(30)
        assert not thread.is_alive(), "the main loop did not stop"


def stats_of(engine: RunningEngine) -> dict[str, Any]:
    """The engine's counters, as its clients get them."""

    async def ask() -> dict[str, Any]:
        client = await EngineClient.connect(engine.url)
        try:
            return await client.stats()
        finally:
            await client.close()

    return asyncio.run(ask())
