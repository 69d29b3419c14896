"""Signs of life of the main loop: when it counts as late, stuck and hopeless, and what the engine then does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading

import msgspec
import pytest

from engine.health import problem_with
from engine.lanes.loop_watch import FIRST_STEPS_FACTOR, NUM_FIRST_STEPS, TICK_S, LoopWatch
from engine.pulse import Pulse
from engine.runner.simulated import SimulatedRunner
from engine.wire import item_messages, redis_keys
from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone
from engine.wire.protocol import Finished
from engine.wire.request_terms import Sampling
from tests.engine.lanes.test_item_puller import add
from tests.engines import running_engine
from tests.factories import runner_info
from tests.services import PATIENCE_S, processes, redis_server, wait_for

RESULTS = redis_keys.RESULTS_KEY

WARM = NUM_FIRST_STEPS  # steps after which the limit is the plain one


def result_of(entry) -> item_messages.ItemResult:
    return item_messages.decode_item_result(entry[1][b"p"])


def ticked(watch: LoopWatch, seconds: float, start_s: float = 0.0) -> LoopWatch:
    """Tick once per interval for so long."""
    for number in range(int(seconds / TICK_S) + 1):
        watch.tick(start_s + number * TICK_S)
    return watch


def test_a_loop_with_nothing_to_do_is_never_late():
    watch = ticked(LoopWatch(Pulse(), lambda: False, 5.0), 1000)
    assert (watch.late_s, watch.is_stuck) == (0.0, False)


def test_a_busy_loop_that_completes_no_step_is_stuck():
    watch = LoopWatch(Pulse(WARM, is_busy=True), lambda: False, 5.0)
    ticked(watch, 5)
    assert not watch.is_stuck
    ticked(watch, 6)
    assert watch.is_stuck and not watch.is_hopeless
    ticked(watch, 11)
    assert watch.is_hopeless


def test_a_loop_that_leaves_messages_unread_is_stuck():
    assert ticked(LoopWatch(Pulse(WARM), lambda: True, 5.0), 7).is_stuck


def test_a_completed_step_is_progress():
    pulse = Pulse(WARM, is_busy=True)
    watch = ticked(LoopWatch(pulse, lambda: True, 5.0), 7)
    pulse.num_steps += 1
    watch.tick(8.0)
    assert (watch.late_s, watch.is_stuck) == (0.0, False)


def test_a_step_has_the_time_that_was_predicted_for_it():
    watch = LoopWatch(Pulse(WARM, is_busy=True, due_s=100.0), lambda: False, 5.0)
    assert ticked(watch, 100).late_s == 0.0
    assert ticked(watch, 7, start_s=101).is_stuck


def test_the_first_steps_may_compile_kernels():
    pulse = Pulse(is_busy=True)
    assert not ticked(LoopWatch(pulse, lambda: False, 5.0), 5 * FIRST_STEPS_FACTOR).is_stuck
    assert ticked(LoopWatch(pulse, lambda: False, 5.0), 5 * FIRST_STEPS_FACTOR + 2).is_stuck
    patient = LoopWatch(Pulse(WARM, is_busy=True), lambda: False, 5.0, is_patient=True)
    assert not ticked(patient, 5 * FIRST_STEPS_FACTOR).is_stuck, "so may ranks that are loaded again"


def test_a_process_that_was_stopped_as_a_whole_is_not_late_when_it_continues():
    watch = ticked(LoopWatch(Pulse(WARM, is_busy=True), lambda: False, 5.0), 1)
    watch.tick(3600.0)
    assert watch.late_s <= 3 * TICK_S


class StuckRunner(SimulatedRunner):
    """A runner that computes no step until it is let go."""

    def __init__(self) -> None:
        super().__init__(runner_info())
        self.let_go = threading.Event()

    def launch(self, plan):
        self.let_go.wait()
        return super().launch(plan)


@pytest.fixture
def never_hopeless(monkeypatch):
    """An engine of this process must not end it."""
    monkeypatch.setattr("engine.lanes.loop_watch.HOPELESS_FACTOR", float("inf"))


# A limit that lets the first steps be late for no longer than a few ticks.
SHORT_S = 3 * TICK_S / FIRST_STEPS_FACTOR


async def test_the_engine_tells_that_its_loop_is_stuck_and_that_it_continues(tmp_path, never_hopeless):
    runner = StuckRunner()
    with running_engine(tmp_path, runner, stuck_after_s=SHORT_S) as engine:
        client = await EngineClient.connect(engine.url)
        assert not (await client.pulse(PATIENCE_S)).is_stuck
        async with client.submit([1, 2, 3], Sampling(max_tokens=4, ignore_eos=True)) as stream:
            try:
                assert await problem_with(engine.url, None) is None
                while not (pulse := await client.pulse(PATIENCE_S)).is_stuck:
                    await asyncio.sleep(0.02)
                assert pulse.late_s > 0
                assert "no progress" in str(await problem_with(engine.url, None))
            finally:
                runner.let_go.set()
            assert isinstance([message async for message in stream][-1], Finished)
        while (pulse := await client.pulse(PATIENCE_S)).is_stuck:
            await asyncio.sleep(0.02)
        assert pulse.num_steps > 0
        await client.close()


def test_another_engine_takes_over_the_items_of_a_stuck_one_which_pulls_no_more(tmp_path, never_hopeless):
    runner = StuckRunner()
    with redis_server() as server, server.cli() as redis:
        options = {"redis_url": server.url, "claim_timeout_s": 3.0}
        (tmp_path / "other").mkdir()
        with running_engine(tmp_path, runner, engine_id="stuck", stuck_after_s=SHORT_S, **options) as engine:
            try:
                add(redis, 1)
                wait_for(lambda: engine.io._watch.is_stuck, "a stuck loop")
                heartbeat = wait_for(lambda: redis.get(redis_keys.engine_key("stuck")), "a heartbeat")
                assert msgspec.msgpack.decode(heartbeat)["engine_id"] == "stuck", "it goes on"
                add(redis, 2)
                with running_engine(tmp_path / "other", engine_id="other", **options):
                    entries = wait_for(lambda: len(found := redis.xrange(RESULTS)) == 2 and found, "results")
                made_by = {each.item_id: each.engine_id for each in map(result_of, entries)}
                assert made_by == {1: "other", 2: "other"}
            finally:
                runner.let_go.set()


def test_an_engine_whose_loop_is_stuck_for_good_ends_and_shows_where(tmp_path):
    with processes() as group:
        socket = group.directory / "engine.sock"
        flags = ["--runner", "simulated", "--model", "sim", "--listen", f"unix://{socket}"]
        flags += ["--simulated-step-s", "3600", "--stuck-after-s", str(TICK_S / FIRST_STEPS_FACTOR)]
        engine = group.start([sys.executable, "-m", "engine", *flags])

        async def ask() -> str:
            wait_for(socket.exists, "the engine")
            client = await EngineClient.connect(f"unix://{socket}", timeout_s=PATIENCE_S)
            with pytest.raises(EngineGone) as gone:
                async with client.submit([1, 2, 3], Sampling(max_tokens=4)) as stream:
                    [message async for message in stream]
            return str(gone.value)

        assert "lost" in asyncio.run(ask())
        assert engine.popen.wait(PATIENCE_S) == 1
        assert "stuck for good" in engine.output()
        assert "in _take_result" in engine.output(), "the log shows what the main thread was doing"


def test_the_health_check_says_what_is_wrong_and_exits_accordingly(tmp_path):
    command = [sys.executable, "-m", "engine.health"]
    with running_engine(tmp_path) as engine:
        healthy = subprocess.run([*command, engine.url], capture_output=True, text=True, timeout=PATIENCE_S)
        assert (healthy.returncode, healthy.stderr) == (0, "")
    gone = subprocess.run([*command, engine.url], capture_output=True, text=True, timeout=PATIENCE_S)
    assert gone.returncode == 1
    assert gone.stderr.startswith("no engine answers at")


@pytest.mark.parametrize(("arguments", "status"), [(("--help",), 0), ((), 2)])
def test_the_health_check_says_how_to_use_it(arguments: tuple[str, ...], status: int) -> None:
    env = {name: value for name, value in os.environ.items() if name != "BROS_ENGINE_URL"}
    command = [sys.executable, "-m", "engine.health", *arguments]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == status
    assert "usage: python -m engine.health" in result.stdout + result.stderr
    assert "BROS_ENGINE_URL" in result.stdout + result.stderr
