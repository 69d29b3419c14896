"""A whole engine in this process: the real loop, lanes and scheduler around the simulated runner, or a given one."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.__main__ import assemble, make_runner
from engine.config import EngineConfig
from engine.core.scheduler import Scheduler
from engine.lanes.io_thread import IoThread
from engine.runner.base import ModelRunner


@dataclasses.dataclass
class RunningEngine:
    """`url` is the RT lane's address; `drain()` begins the shutdown that a SIGTERM would."""

    url: str
    runner: ModelRunner
    scheduler: Scheduler
    io: IoThread
    thread: threading.Thread

    def drain(self) -> None:
        self.io.request_drain()


@contextmanager
def running_engine(
    directory: Path, runner: ModelRunner | None = None, *, refuses_late: bool = False, **overrides: object
) -> Iterator[RunningEngine]:
    """Serves on `directory`/engine.sock until the block ends. Overrides are fields of EngineConfig. With `refuses_late`
    it refuses what it could not answer in time; tests that are not about that should not depend on how fast it is."""
    config = EngineConfig(
        model="sim", served_model_name="sim", listen=f"unix://{directory / 'engine.sock'}", runner="simulated"
    )
    config = dataclasses.replace(config, **overrides)  # type: ignore[arg-type]
    runner = runner or make_runner(config)
    loop, io = assemble(config, runner)
    loop.publish = io.publish if refuses_late else None
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
