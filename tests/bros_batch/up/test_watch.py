"""A child that runs but does not answer is killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

from bros_batch.up.watch import FileBeat, Watch
from tests.bros_batch.up.test_supervisor import kept, until

LIMIT_S = 0.5
TOUCHES = "import pathlib, sys, time\nwhile True: pathlib.Path(sys.argv[1]).touch(); time.sleep(0.01)"


@asynccontextmanager
async def watched(tmp_path: Path, code: str, messages: list[str], **options):
    """Keep a child that runs `code` running, and watch it by the file that it touches."""
    import sys

    beat = tmp_path / "child.alive"
    async with kept(tmp_path, "", messages, command=[sys.executable, "-c", code, str(beat)]) as (child, _):
        watch = Watch(child, FileBeat(beat), LIMIT_S, messages.append, **options)
        watching = asyncio.create_task(watch.run())
        try:
            yield child, watch
        finally:
            watching.cancel()


async def test_a_frozen_child_is_killed_and_started_again(tmp_path):
    messages: list[str] = []
    async with watched(tmp_path, TOUCHES, messages) as (child, _):
        await until(lambda: child.has_answered)
        frozen = child.pid
        os.kill(frozen, signal.SIGSTOP)
        await until(lambda: child.pid not in (None, frozen) and child.has_answered)
    assert "child has been silent for" in messages[0]
    assert "child died (killed by SIGKILL)" in messages[1]


async def test_a_child_that_has_not_answered_yet_may_take_its_time_to_start(tmp_path):
    messages: list[str] = []
    probed: list[float] = []
    async with watched(tmp_path, "import time; time.sleep(300)", messages) as (child, watch):
        await until(lambda: probed.append(watch.silent_s) or len(probed) > 10 * LIMIT_S / 0.01)
        assert child.deaths == 0
    assert messages == [] and max(probed) == 0


async def test_silence_does_not_count_while_a_healthy_child_would_be_silent_too(tmp_path):
    messages: list[str] = []
    is_conclusive = False
    async with watched(tmp_path, TOUCHES, messages, is_conclusive=lambda: is_conclusive) as (child, watch):
        await until(lambda: child.has_answered)
        frozen = child.pid
        os.kill(frozen, signal.SIGSTOP)
        probed: list[float] = []
        await until(lambda: probed.append(watch.silent_s) or len(probed) > 10 * LIMIT_S / 0.01)
        assert child.pid == frozen and max(probed) == 0
        is_conclusive = True
        await until(lambda: child.pid not in (None, frozen))


async def test_a_frozen_child_stops_when_it_is_told_to(tmp_path):
    messages: list[str] = []
    async with watched(tmp_path, TOUCHES, messages, is_conclusive=lambda: False) as (child, _):
        await until(lambda: child.has_answered)
        os.kill(child.pid, signal.SIGSTOP)
        await child.stop()
        assert child.last_code == -signal.SIGTERM, "it was continued and did not have to be killed"
    assert messages == []
