"""Lines that take forever to prepare, or that end the process that prepares them: they fail alone."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from bros_batch.jobs import cpu_limit as cpu_limit_module
from bros_batch.jobs import finished_item, limited_requests, tasks
from bros_batch.jobs import prepare as prepare_module
from bros_batch.jobs.celery_app import app
from bros_batch.jobs.cpu_limit import CpuLimitExceeded, cpu_limit, limited_lines
from bros_batch.settings import Settings
from bros_batch.text.tokenizer import ModelTokenizer
from tests.bros_batch.world import World, batch_line, batch_lines
from tests.services import ROOT

LIMIT_S = 0.2


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (prepare_module, finished_item, limited_requests):
        monkeypatch.setattr(module, "LINE_CPU_LIMIT_S", LIMIT_S)


def spin_on(monkeypatch: pytest.MonkeyPatch, name: str, poison: str) -> None:
    """Let a method of the tokenizer never return for what contains `poison`."""
    real = getattr(ModelTokenizer, name)

    def spin(self: ModelTokenizer, given: Any, *arguments: Any, **options: Any) -> Any:
        while poison in str(given):
            pass
        return real(self, given, *arguments, **options)

    monkeypatch.setattr(ModelTokenizer, name, spin)


def test_code_that_spins_is_stopped_and_code_that_waits_is_not() -> None:
    with pytest.raises(CpuLimitExceeded), cpu_limit(0.05):
        while True:
            math.sqrt(2.0)
    with cpu_limit(0.05):
        threading.Event().wait(0.2)
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_lines_that_share_a_timer_have_a_limit_each() -> None:
    stopped = []
    with limited_lines():
        for number in range(4):
            try:
                with cpu_limit(0.1):
                    while number == 2:
                        math.sqrt(2.0)
            except CpuLimitExceeded:
                stopped.append(number)
    assert stopped == [2]
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_there_is_no_limit_outside_the_main_thread() -> None:
    def work() -> None:
        with cpu_limit(1e-6):
            done.append(sum(range(100_000)))

    done: list[int] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [sum(range(100_000))]


@pytest.mark.usefixtures("short_limit")
def test_a_line_that_takes_forever_to_prepare_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spin_on(monkeypatch, "encode_chat", "poison")
    lines = [*batch_lines(5), batch_line("bad", "poison"), batch_line("good", "hello")]
    job_id = world.running(lines)
    prepared = world.prepare()
    assert (prepared.queued, prepared.failed) == (6, 1)
    assert world.run_through(job_id).succeeded == 6
    job = world.check_counts(job_id)
    (error,) = world.file_lines(job.error_file_id)
    assert error["custom_id"] == "bad"
    assert "takes more than 0.2 s of CPU time to prepare" in error["error"]["message"]


@pytest.mark.usefixtures("short_limit")
def test_a_result_that_takes_forever_to_read_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.running(batch_lines(4))
    world.prepare()
    taken = world.engine.take()
    world.engine.answer(taken)
    poisoned = str(taken[2].item.item_id)
    real = finished_item._body

    def body(result: Any, *others: Any) -> tuple[str, str | None]:
        while str(result.item_id) == poisoned:
            pass
        return real(result, *others)

    monkeypatch.setattr(finished_item, "_body", body)
    assert world.record().changed == 4
    assert world.statuses(job_id) == ["succeeded", "succeeded", "failed", "succeeded"]


@pytest.mark.usefixtures("short_limit")
def test_defaults_that_take_forever_to_read_fail_the_job_and_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = limited_requests.try_job_requests

    def read(endpoint: str, model: str, form: str | None, defaults: Any) -> Any:
        while defaults.get("system") == "poison":
            pass
        return real(endpoint, model, form, defaults)

    bad = world.running([{"text": "a"}, {"text": "b"}], defaults={"system": "poison"})
    good = world.running(batch_lines(3))
    monkeypatch.setattr(limited_requests, "try_job_requests", read)
    prepared = world.prepare()
    assert (prepared.queued, prepared.failed, list(prepared.finalize)) == (3, 2, [bad])
    assert world.run_through(good).succeeded == 3


DEADLY = """
import os, signal
from bros_batch.jobs.prepare import prepare
from bros_batch.jobs.worker import get_worker
from bros_batch.text.tokenizer import ModelTokenizer

encode = ModelTokenizer.encode_chat

def die(self, messages, *arguments, **options):
    if "deadly" in str(messages):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(self, messages, *arguments, **options)

ModelTokenizer.encode_chat = die
prepare(get_worker(), "sim", float("inf"))
"""


def test_a_line_that_kills_the_worker_fails_alone(world: World, settings: Settings) -> None:
    values = settings.model_dump(mode="json", exclude_none=True)
    env = {**os.environ, **{f"BROS_{name.upper()}": str(value) for name, value in values.items()}}
    job_id = world.running([*batch_lines(3), batch_line("bad", "deadly"), *batch_lines(7)[4:]])
    other = world.running(batch_lines(5))
    world.engine.announce()
    deaths = 0
    for _ in range(20):
        code = subprocess.run([sys.executable, "-c", DEADLY], cwd=ROOT, env=env, timeout=120).returncode
        deaths += code == -signal.SIGKILL
        world.engine.answer(world.engine.take())
        world.record()
        world.sweep(later_s=1000)
        if code == 0:
            break
    assert deaths == world.settings.max_attempts
    assert world.job(other).succeeded == 5
    assert world.statuses(job_id) == ["succeeded"] * 3 + ["failed"] + ["succeeded"] * 3
    world.check_counts(job_id)
    assert "was lost 3 times" in (world.items(job_id)[3].error_message or "")


def test_items_that_were_lost_together_are_all_queued_again(world: World) -> None:
    job_id = world.running(batch_lines(30))
    world.prepare()
    world.redis.delete(world.engine.key)
    assert world.sweep(later_s=1000).lost == 30
    assert world.prepare().queued == 30
    assert world.run_through(job_id).succeeded == 30


# Tasks --------------------------------------------------------------------------------------------------------------


def test_every_task_has_a_time_limit_that_leaves_room_for_its_budget() -> None:
    assert app.conf.task_time_limit > app.conf.task_soft_time_limit > 10 * tasks.TIME_BUDGET_S
    assert app.conf.task_soft_time_limit > 2 * cpu_limit_module.LINE_CPU_LIMIT_S
    for name, task in app.tasks.items():
        if name.startswith("bros."):
            limits = (task.soft_time_limit, task.time_limit)
            assert limits == (app.conf.task_soft_time_limit, app.conf.task_time_limit)


def test_a_task_that_runs_into_its_limit_says_so_in_one_line(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from celery.exceptions import SoftTimeLimitExceeded

    def run_into_the_limit(*_: Any) -> None:
        raise SoftTimeLimitExceeded

    job_id = world.running(batch_lines(5))
    monkeypatch.setattr(tasks, "get_worker", lambda: world.worker)
    monkeypatch.setattr(ModelTokenizer, "encode_chat", run_into_the_limit)
    world.engine.announce()
    tasks.prepare("sim")
    assert [record.getMessage() for record in caplog.records if "prepare" in record.getMessage()] == [
        "prepare gave up for now: SoftTimeLimitExceeded()"
    ]
    assert world.statuses(job_id) == ["pending"] * 5, "what it had begun is left as it was"
    monkeypatch.undo()
    assert world.run_through(job_id).succeeded == 5


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ingest", [None]),
        ("ingest", [10**30]),
        ("ingest", []),
        ("ingest", ["a", "b"]),
        ("ingest", ["nul\x00"]),
        ("finalize", [{"id": "batch_x"}]),
        ("finalize", ["x" * 10_000]),
        ("finalize", ["no such job"]),
        ("prepare", [["sim"]]),
        ("prepare", ["another model"]),
        ("record", ["surplus"]),
        ("pump", [1]),
        ("sweep", [[]]),
    ],
)
def test_a_task_with_unusable_arguments_does_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[Any]
) -> None:
    job_id = world.running(batch_lines(2))
    monkeypatch.setattr(tasks, "get_worker", lambda: world.worker)
    getattr(tasks, name).run(*arguments)
    assert world.statuses(job_id) == ["pending"] * 2
