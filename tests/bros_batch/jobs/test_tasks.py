"""Celery: its configuration, a broker that is away, and jobs with a real worker and beat."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest
from celery import Celery

from bros_batch.db import job_control
from bros_batch.db.connections import writing
from bros_batch.db.table_rows import Job
from bros_batch.jobs import tasks
from bros_batch.jobs.celery_app import app, broker_url, configuration
from bros_batch.settings import Settings
from tests.bros_batch.world import World, batch_lines
from tests.services import ROOT, Processes, RedisServer, processes, wait_for


def test_the_broker_carries_json_and_acknowledges_late() -> None:
    settings = Settings(visibility_timeout_s=17)
    conf = configuration(settings)
    assert (conf["task_serializer"], conf["accept_content"]) == ("json", ["json"])
    assert conf["task_acks_late"] and conf["task_reject_on_worker_lost"]
    assert conf["worker_prefetch_multiplier"] == 1
    assert conf["broker_transport_options"]["visibility_timeout"] == 17
    assert app.conf.result_backend is None
    for entry in conf["beat_schedule"].values():
        assert entry["options"]["expires"] >= 1.0
        assert entry["task"] in app.tasks


def test_the_broker_is_our_redis() -> None:
    assert broker_url(Settings(redis_url="unix:///run/redis.sock")) == "redis+socket:///run/redis.sock"
    assert broker_url(Settings(redis_url="redis://host:6379/2")) == "redis://host:6379/2"


def test_dispatch_survives_a_broker_that_is_away(tmp_path: Path) -> None:
    program = "from bros_batch.jobs.tasks import dispatch; print(dispatch('ingest', 'batch_x'))"
    env = {**os.environ, "BROS_REDIS_URL": f"unix://{tmp_path}/nobody.sock"}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30
    )
    assert run.stdout.strip() == "False", run.stderr


def test_every_task_name_of_dispatch_is_a_task() -> None:
    for name in get_args(tasks.TaskName):
        assert f"bros.{name}" in app.tasks


@pytest.fixture
def options() -> dict[str, Any]:
    return {
        "lost_after_s": 2.0,
        "lease_s": 2.0,
        "pump_interval_s": 0.2,
        "sweep_interval_s": 0.5,
        "visibility_timeout_s": 2,
        "ingest_group_lines": 50,
    }


@pytest.fixture
def group(settings: Settings) -> Iterator[Processes]:
    """Starts processes with the settings of the test."""
    values = settings.model_dump(mode="json", exclude_none=True)
    with processes({f"BROS_{name.upper()}": str(value) for name, value in values.items()}) as started:
        yield started


def answer_everything(
    world: World, job_id: str, done: int | None = None, meanwhile: Callable[[], None] = lambda: None
) -> Job:
    """Answer as the engine until the job has ended, or `done` of its items have."""

    def over() -> Job | None:
        meanwhile()
        world.engine.answer(world.engine.take(20))
        job = world.job(job_id)
        ended = job.status in ("completed", "failed", "cancelled", "expired")
        return job if ended or (done is not None and job.ended >= done) else None

    return wait_for(over, "the end of the job")


def check_whole(world: World, job_id: str, count: int) -> None:
    job = world.check_counts(job_id)
    assert (job.status, job.succeeded) == ("completed", count)
    lines = world.file_lines(job.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"doc-{number}" for number in range(count)]


def test_worker_and_beat_run_jobs_and_replace_a_dead_pool_process(world: World, group: Processes) -> None:
    worker, beat = group.worker(), group.beat()
    job_id = world.submit(batch_lines(200))  # without a dispatch: the sweep finds it
    answer_everything(world, job_id)
    check_whole(world, job_id, 200)
    assert worker.running and beat.running
    assert "Traceback" not in worker.output(), worker.output()

    job_id = world.submit(batch_lines(300))
    answer_everything(world, job_id, 20)
    with writing(world.database) as connection:
        job_control.cancel_job(connection, job_id)
    wait_for(lambda: world.job(job_id).status == "cancelled", "the cancellation")
    job = world.check_counts(job_id)
    assert len(world.file_lines(job.output_file_id)) == job.succeeded
    assert len(world.file_lines(job.error_file_id)) == job.cancelled
    wait_for(lambda: world.queue_length() == 0, "an empty stream")

    job_id = world.submit(batch_lines(300))
    answer_everything(world, job_id, 20)
    for child in psutil.Process(worker.pid).children():
        os.kill(child.pid, signal.SIGKILL)
    answer_everything(world, job_id)
    check_whole(world, job_id, 300)
    assert worker.running
    assert worker.stop() == 0


def test_another_worker_continues_after_a_kill(world: World, group: Processes) -> None:
    group.beat()
    worker = group.worker()
    job_id = world.submit(batch_lines(400))
    for done in (1, 100, 250):
        answer_everything(world, job_id, done)
        worker.kill()
        worker = group.worker()
    answer_everything(world, job_id)
    check_whole(world, job_id, 400)


def test_a_redis_that_comes_back_empty_loses_nothing(
    world: World, group: Processes, redis_server: RedisServer
) -> None:
    worker, beat = group.worker(), group.beat()
    job_id = world.submit(batch_lines(300))
    answer_everything(world, job_id, 50)
    redis_server.restart()
    world.redis = redis_server.cli()

    def supervise() -> None:
        """Start the worker again when it has ended.

        A worker that loses its broker during an acknowledgement ends, because kombu 5.7 has no connection of which to
        ask the address.
        """
        nonlocal worker
        if not worker.running:
            worker = group.worker()

    answer_everything(world, job_id, meanwhile=supervise)
    check_whole(world, job_id, 300)
    assert beat.running


@pytest.mark.parametrize("options", [{"queue_max_items": 40}], ids=["short queue"])
def test_recording_dispatches_prepare_when_the_stream_runs_low(world: World, group: Processes) -> None:
    """There is no beat, and prepare is dispatched only once from outside."""
    group.worker()
    world.engine.announce()
    job_id = world.running(batch_lines(200))
    with Celery(broker=broker_url(world.settings)) as sender:
        sender.conf.update(configuration(world.settings))
        sender.send_task("bros.prepare", args=["sim"])

        def over() -> bool:
            world.engine.answer(world.engine.take(20))
            sender.send_task("bros.record")
            return world.job(job_id).status == "completed"

        wait_for(over, "the end of the job")
    check_whole(world, job_id, 200)
