"""Which items are blamed for the death of an engine: those of the steps under way, and in the end only the cause."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from engine.__main__ import SIMULATED_VOCAB_SIZE
from engine.core.terms import Lane, SamplingParams
from engine.lanes.suspects import MAX_RUNNING, OFTEN_STARTED, Record, Suspects, suspects_key
from engine.lanes.translation import sampling_params
from engine.runner.simulated import SimulatedRunner
from engine.step_mark import LastStep, StepMark, _parsed
from engine.wire import item_messages, redis_keys
from engine.wire.client import EngineClient
from engine.wire.engine_errors import EngineGone
from engine.wire.request_terms import Sampling
from tests.engine.lanes.test_item_puller import KEY, SAMPLING, add, num_pending, read_as, results, slow_runner
from tests.engine.runner.test_failing_rows import FailingRunner
from tests.engines import running_engine
from tests.factories import runner_info
from tests.services import Process, Processes, processes, wait_for

LONG = Sampling(max_tokens=15_000, temperature=0.0, ignore_eos=True)
POISON = [9, 9, 9]


# The step mark -------------------------------------------------------------------------------------------------


def test_a_mark_outlives_its_process_and_is_read_once(tmp_path: Path) -> None:
    path, regular_end = tmp_path / "engine.step", LastStep(is_known=True)
    mark = StepMark(path)
    assert mark.last_step == LastStep()
    mark.set(["b1-0.0", "b2-0.1"], False)
    mark.set(["b17-3.0"], True)
    assert StepMark(path).last_step == LastStep(("b17-3.0",), True, is_known=True)
    assert StepMark(path).last_step == regular_end, "a death is counted once"
    mark = StepMark(path)
    mark.set([f"b{i}-0.0" for i in range(10_000)], False)
    assert len(StepMark(path).last_step.request_ids) > 5_000, "as many as there is room for"
    mark.set(["b1-0.0"], False)
    mark.set([], False)
    assert StepMark(path).last_step == regular_end


@pytest.mark.parametrize("content", [b"", b"\0", b"\xff" * 100, b"\x05\0\0\0\1\0\0\0\xff\xfe\n\n\0" * 9000])
def test_a_damaged_mark_blames_nobody_who_exists(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "engine.step"
    path.write_bytes(content)
    assert not any(name.startswith("b") for name in StepMark(path).last_step.request_ids)
    assert StepMark(path).last_step.request_ids == ()


# Records ---------------------------------------------------------------------------------------------------------


def test_only_deaths_in_a_pass_of_its_own_make_an_item_fail() -> None:
    assert not Record(3, 0, 0).is_suspect
    assert Record(2, 1, 0).is_suspect
    assert Record(100, 0, 0).is_suspect
    assert Record(9, 9, 2).failure(3) is None
    assert "3 of those times" in (Record(5, 4, 3).failure(3) or "")
    assert Record(OFTEN_STARTED + 2, 0, 0).failure(3) is None
    assert Record(OFTEN_STARTED + 3, 0, 0).failure(3) is not None


def test_few_suspects_run_at_a_time_and_one_that_was_often_started_runs_alone() -> None:
    suspects = Suspects(None, "sim", LastStep())
    often, once = Record(OFTEN_STARTED, 0, 0), Record(1, 1, 0)
    records = {b"%d-0" % i: often if i in (2, 9) else once for i in range(12)}
    for entry_id, record in records.items():
        suspects.add(entry_id, record)
    held = set(records)
    most_running, order = 0, []
    running: list[bytes] = []
    while held:
        while (chosen := suspects.next_to_start(held)) is not None:
            suspects.has_started(chosen[0])
            running.append(chosen[0])
            order.append(chosen[0])
        most_running = max(most_running, len(running))
        assert running, "somebody's turn comes"
        if any(records[entry_id] is often for entry_id in running):
            assert len(running) == 1
        held.discard(running.pop(0))
    assert most_running == MAX_RUNNING
    assert order == list(records)
    assert not suspects.has_waiting(held)


# Engines in processes of their own ---------------------------------------------------------------------------------


class Engine:
    """An engine whose process dies by SIGSEGV in every step that computes a prompt which contains `POISON`."""

    def __init__(self, group: Processes, redis_url: str, *flags: str) -> None:
        self.group = group
        self.socket = group.directory / "engine.sock"
        self._command = [
            *(sys.executable, "-m", "tests.poisoned_engine", "--runner", "simulated", "--model", "sim"),
            *("--listen", f"unix://{self.socket}", "--redis-url", redis_url, "--engine-id", "engine-0"),
            *("--max-num-seqs", "8", *flags),
        ]
        self.deaths: list[int] = []
        self.process = self._start()

    def _start(self) -> Process:
        poison = {"signal": signal.SIGSEGV, "token_ids": POISON}
        return self.group.start(self._command, env={"POISON": json.dumps(poison)})

    def keep_running(self) -> None:
        """Start it again if it has died."""
        if not self.process.running:
            self.deaths.append(self.process.popen.returncode)
            self.process = self._start()

    def kill_in_step(self, num_items: int) -> None:
        """Kill it while it computes this many items, and start it again."""
        mark = self.socket.with_suffix(".step")

        def stopped_in_step() -> bool:
            if mark.exists():
                os.kill(self.process.pid, signal.SIGSTOP)
                if len(_parsed(mark.read_bytes()).request_ids) == num_items:
                    return True
                os.kill(self.process.pid, signal.SIGCONT)
            return False

        wait_for(stopped_in_step, f"a step of {num_items} items")
        self.process.kill()
        self.process = self._start()


def wait_for_results(redis, engine: Engine, count: int) -> dict[int, item_messages.ItemResult]:
    """Wait for the results of `count` items and return them by item id. Some may come twice. An engine that starts anew
    has as long for the rest as the first one."""
    answers: dict[int, item_messages.ItemResult] = {}

    def all_there_or_died(num_deaths: int) -> bool:
        engine.keep_running()
        entries = redis.xrange(redis_keys.RESULTS_KEY)
        decoded = [item_messages.decode_item_result(fields[b"p"]) for _, fields in entries]
        answers.update({answer.item_id: answer for answer in decoded})
        return len(answers) >= count or len(engine.deaths) > num_deaths

    while len(answers) < count:
        assert len(engine.deaths) < 20, engine.deaths
        wait_for(partial(all_there_or_died, len(engine.deaths)), f"{count} results")
    assert len(answers) == count
    return answers


def check_innocent(answers: dict[int, item_messages.ItemResult], prompts: dict[int, list[int]]) -> None:
    """They have the outputs that they would have if nothing had happened."""
    info = dataclasses.replace(runner_info(), vocab_size=SIMULATED_VOCAB_SIZE)
    runner = SimulatedRunner(info)
    for i, prompt in prompts.items():
        assert answers[i].error_code is None, answers[i].error_message
        assert answers[i].choices[0].token_ids == runner.continuation(prompt, sampling_params(SAMPLING))


def test_only_the_item_that_kills_the_engine_fails(server, redis) -> None:
    prompts = {i: [5, 6, 7 + i] for i in range(80)}
    for i, prompt in prompts.items():
        if i == 40:
            add(redis, 1000, [3, *POISON, 4])
        add(redis, i, prompt)
    with processes() as group:
        engine = Engine(group, server.url)
        answers = wait_for_results(redis, engine, 81)
        assert engine.deaths == [-signal.SIGSEGV] * 4, "once among others, three times by itself"
    assert answers[1000].error_code == "engine_lost"
    assert "3 of those times it computed nothing else" in (answers[1000].error_message or "")
    check_innocent(answers, prompts)


def test_several_deadly_items_fail_and_no_other(server, redis) -> None:
    prompts = {i: [5, 6, 7 + i] for i in range(40)}
    for i, prompt in prompts.items():
        add(redis, i, prompt)
        if i % 13 == 0:
            add(redis, 1000 + i, [*POISON, i])
    with processes() as group:
        answers = wait_for_results(redis, Engine(group, server.url, "--max-attempts", "1"), 44)
    assert {i for i, answer in answers.items() if answer.error_code} == {1000, 1013, 1026, 1039}
    check_innocent(answers, prompts)


def test_an_engine_that_is_killed_by_hand_fails_nothing(server, redis) -> None:
    """Not even the item that is being computed each time, alone in its job."""
    add(redis, 1, sampling=Sampling(max_tokens=200, temperature=0.0, ignore_eos=True))
    with processes() as group:
        engine = Engine(group, server.url, "--simulated-step-s", "0.01")
        for kills in (b"1", b"2", b"3"):
            engine.kill_in_step(1)
            wait_for(lambda kills=kills: redis.hget(suspects_key("sim"), "1") == kills)
        assert redis.hget(suspects_key("sim"), "1 apart") == b"2"
        wait_for(lambda: num_pending(redis) and engine.socket.exists())
        (pending,) = redis.xpending_range(KEY, redis_keys.ENGINE_GROUP, "-", "+", 10)
        assert pending["times_delivered"] <= 1, (
            "starts do not count if it is known in which steps engines died"
        )
        answers = wait_for_results(redis, engine, 1)
    assert answers[1].error_code is None and len(answers[1].choices[0].token_ids) == 200


def test_a_chat_that_kills_the_engine_fails_no_item(server, redis) -> None:
    """Items that were computed beside it run apart from then on, and it is not blamed on them when it is sent again."""
    prompts = {i: [5, 6, 7 + i] for i in range(12)}
    for i, prompt in prompts.items():
        add(redis, i, prompt, sampling=Sampling(max_tokens=60, temperature=0.0, ignore_eos=True))

    async def chat(url: str) -> None:
        client = await EngineClient.connect(url)
        try:
            async with client.submit(POISON, Sampling(max_tokens=5)) as stream:
                async for _ in stream:
                    pass
        finally:
            await client.close()

    with processes() as group:
        engine = Engine(group, server.url, "--simulated-step-s", "0.01", "--max-attempts", "1")
        for kills in range(1, 5):
            wait_for(lambda: engine.socket.exists() and engine.process.running)

            def has_killed(kills: int = kills) -> bool:
                with suppress(EngineGone, OSError):
                    asyncio.run(chat(f"unix://{engine.socket}"))
                engine.keep_running()
                return len(engine.deaths) >= kills

            wait_for(has_killed, "the death of the engine")
        answers = wait_for_results(redis, engine, 12)
        assert len(engine.deaths) == 4
    info = dataclasses.replace(runner_info(), vocab_size=SIMULATED_VOCAB_SIZE)
    for i, prompt in prompts.items():
        sampling = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
        assert answers[i].error_code is None, answers[i].error_message
        assert answers[i].choices[0].token_ids == SimulatedRunner(info).continuation(prompt, sampling)


def test_the_death_of_an_engine_counts_only_against_what_it_computed(tmp_path, server, redis) -> None:
    """Items that it holds but has no rows for are innocent."""
    for i in range(20):
        add(redis, i, sampling=LONG)
    with processes() as group:
        engine = Engine(group, server.url, "--simulated-step-s", "0.01", "--be-prefetch", "12")
        wait_for(lambda: num_pending(redis) == 20)
        engine.kill_in_step(7)  # of 8 rows, one is reserved for chat
        wait_for(lambda: redis.hlen(suspects_key("sim")))
        assert set(redis.hgetall(suspects_key("sim")).values()) == {b"1"}
        assert redis.hlen(suspects_key("sim")) == 7


def test_an_item_keeps_its_deaths_when_its_job_is_paused_and_continued(server, redis) -> None:
    """Each time it gets a new entry, and the engine dies again; in the end the item fails."""
    entries = [add(redis, 1, [*POISON, 1])]
    add(redis, 2)
    with processes() as group:
        engine = Engine(group, server.url, "--max-attempts", "2")
        for deaths in (1, 2):
            wait_for(lambda: not engine.process.running)
            redis.xack(KEY, redis_keys.ENGINE_GROUP, entries[-1])
            redis.xdel(KEY, entries[-1])
            engine.keep_running()
            wait_for(lambda deaths=deaths: redis.hget(suspects_key("sim"), "1") == b"%d" % deaths)
            entries.append(add(redis, 1, [*POISON, 1]))
        answers = wait_for_results(redis, engine, 2)
        assert len(engine.deaths) == 3
    assert "died 3 times" in (answers[1].error_message or "")
    assert answers[2].error_code is None


def test_an_engine_that_ends_regularly_leaves_no_suspects(server, redis) -> None:
    add(redis, 1, sampling=LONG)
    with processes() as group:
        engine = Engine(group, server.url, "--simulated-step-s", "0.01")
        mark = engine.socket.with_suffix(".step")
        wait_for(lambda: mark.exists() and _parsed(mark.read_bytes()).request_ids)
        assert engine.process.stop() == 0
        assert StepMark(mark).last_step.request_ids == ()
    assert not redis.exists(suspects_key("sim"))


# An engine of another machine, which knows nothing of the step -----------------------------------------------------


def deliver_often(redis, count: int, times: int) -> Sequence[bytes]:
    entries = read_as(redis, "dead", count)
    for entry_id in entries:
        redis.xclaim(KEY, redis_keys.ENGINE_GROUP, "dead", 0, [entry_id], retrycount=times, idle=10**9)
    return entries


def test_items_that_many_engines_have_held_run_one_at_a_time_and_succeed(tmp_path, server, redis) -> None:
    for i in range(5):
        add(redis, i, sampling=LONG if i == 0 else SAMPLING)
    entries = deliver_often(redis, 5, OFTEN_STARTED + 2)
    runner = slow_runner(0.0)
    with running_engine(tmp_path, runner, redis_url=server.url) as engine:
        wait_for(lambda: sum(engine.scheduler.num_requests(Lane.BE)) == 1)
        pending = redis.xpending_range(KEY, redis_keys.ENGINE_GROUP, "-", "+", 10)
        assert {p["message_id"]: p["times_delivered"] for p in pending} == {
            entry_id: OFTEN_STARTED + (3 if entry_id == entries[0] else 2) for entry_id in entries
        }, "only the first has been started once more"
        assert {i for i, answer in results(redis, 5).items() if answer.error_code is None} == set(range(5))


def test_an_item_that_was_started_alone_too_often_fails(tmp_path, server, redis) -> None:
    add(redis, 1)
    add(redis, 2)
    deliver_often(redis, 1, OFTEN_STARTED + 3)
    with running_engine(tmp_path, redis_url=server.url, max_attempts=3):
        answers = results(redis, 2)
    assert (answers[1].error_code, answers[2].error_code) == ("engine_lost", None)
    assert f"went away {OFTEN_STARTED + 3} times" in (answers[1].error_message or "")


# A step that only fails -------------------------------------------------------------------------------------------


def test_an_item_whose_row_fails_says_that_the_engine_could_not_compute_it(tmp_path, server, redis) -> None:
    due = {f"b{i}:{add(redis, i).decode()}.0": 5 for i in (3, 7)}
    for i in (1, 2, 4, 5, 6):
        add(redis, i)
    with running_engine(
        tmp_path, FailingRunner(runner_info(), due, loses_kv=True), redis_url=server.url
    ) as engine:
        answers = results(redis, 7)
        assert engine.thread.is_alive()
    assert {i for i, answer in answers.items() if answer.error_code == "engine_error"} == {3, 7}
    assert "IndexError" in (answers[3].error_message or "")
    assert all(len(answers[i].choices[0].token_ids) == 6 for i in (1, 2, 4, 5, 6))
