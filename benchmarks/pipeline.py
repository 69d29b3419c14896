"""How many items per second pass through the whole pipeline when the model costs nothing, and how fast is ingest?

    python -m benchmarks.pipeline [--database sqlite|postgres] [--items 20000] [--ingest-lines 1000000]

Redis, the database, the Celery worker (two processes) and beat are real; the engine's runner is simulated. The job is
submitted as a file and a row, as the web server would write them, and ends when its output file exists. The report also
gives the CPU time per item, which hardly depends on what else runs on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import write_result
from bros_batch.db.table_rows import Job
from bros_batch.settings import DEMO_MODEL_DIR
from tests.services import Processes, postgres_server, processes, redis_server, wait_for

CHAT = "/v1/chat/completions"
MODEL_NAME = "sim"
OUTPUT_TOKENS = 16
SAMPLE_S = 0.5


@dataclass
class Meter:
    """CPU seconds and peak memory of groups of processes, sampled while they run.

    Memory is given as the unique bytes of a group and as the resident bytes of its largest process.
    """

    groups: dict[str, int]  # name to the pid of the group's first process
    cpu_s: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    peak_process_bytes: dict[str, int] = field(default_factory=dict)
    _seen: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Meter:
        self._sample()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
        for (name, _pid), (first, last) in self._seen.items():
            self.cpu_s[name] = round(self.cpu_s.get(name, 0.0) + last - first, 2)

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self._sample()

    def _sample(self) -> None:
        for name, pid in self.groups.items():
            total = 0
            with contextlib.suppress(psutil.NoSuchProcess):
                first = psutil.Process(pid)
                for process in [first, *first.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        times, memory = process.cpu_times(), process.memory_full_info()
                        spent = times.user + times.system
                        before = self._seen.get((name, process.pid), (spent, spent))[0]
                        self._seen[(name, process.pid)] = (before, spent)
                        # Unique pages, since the processes of the pool share pages with their parent.
                        total += memory.uss
                        peak = self.peak_process_bytes.get(name, 0)
                        self.peak_process_bytes[name] = max(peak, memory.rss)
            self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), total)


@dataclass
class System:
    """The running services."""

    group: Processes
    redis_url: str
    model: Path
    pids: dict[str, int]


@contextlib.contextmanager
def system(database: str, data_dir: Path) -> Iterator[System]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        pids = {"redis": redis.process.pid}
        url = f"sqlite:///{data_dir / 'bros.db'}"
        if database == "postgres":
            # As in production: what is committed is on disk.
            settings = ("fsync=on", "full_page_writes=on", "shared_buffers=256MB", "max_wal_size=4GB")
            postgres = stack.enter_context(postgres_server(settings))
            url = postgres.create_database()
            if postgres.pid is not None:
                pids["postgres"] = postgres.pid
        model = DEMO_MODEL_DIR
        if not (model / "tokenizer.json").exists():
            from tests.factories_text import make_text_model

            model = make_text_model(data_dir / "model")
        os.environ |= {
            "BROS_DATA_DIR": str(data_dir),
            "BROS_DATABASE_URL": url,
            "BROS_REDIS_URL": redis.url,
            "BROS_MODEL": str(model),
            "BROS_SERVED_MODEL_NAME": MODEL_NAME,
        }
        from bros_batch.db.schema import upgrade

        upgrade(url)
        group = stack.enter_context(processes())
        pids["worker"] = group.worker(concurrency=2).pid
        pids["beat"] = group.beat().pid
        yield System(group, redis.url, model, pids)


def write_batch_file(path: Path, count: int) -> None:
    with path.open("w") as file:
        for number in range(count):
            content = f"Document {number}: " + "total 12.50 EUR, due on Monday. " * 8
            body = {
                "model": MODEL_NAME,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": OUTPUT_TOKENS,
            }
            line = {"custom_id": f"doc-{number}", "method": "POST", "url": CHAT, "body": body}
            file.write(json.dumps(line) + "\n")


def submit(path: Path) -> str:
    """Do what the web server does at an upload and a POST to /v1/batches."""
    from bros_batch.db import files, jobs
    from bros_batch.db.connections import get_database, writing
    from bros_batch.jobs.tasks import dispatch

    with writing(get_database()) as connection:
        file = files.create_file(
            connection,
            purpose="batch",
            filename=path.name,
            size_bytes=path.stat().st_size,
            sha256="",
            path=str(path),
        )
        job = jobs.create_job(connection, input_file_id=file.id, endpoint=CHAT, model=MODEL_NAME)
    dispatch("ingest", job.id)
    return job.id


def job_in(job_id: str, *statuses: str) -> Job | None:
    """The job, if it has one of these statuses."""
    from bros_batch.db import jobs
    from bros_batch.db.connections import get_database, reading

    with reading(get_database()) as connection:
        job = jobs.get_job(connection, job_id)
    return job if job is not None and job.status in statuses else None


def measured(meter: Meter, count: int) -> dict[str, Any]:
    return {
        "cpu_s": meter.cpu_s,
        "cpu_us_per_item": {name: round(spent / count * 1e6, 1) for name, spent in meter.cpu_s.items()},
        "peak_mb": {name: round(size / 1e6, 1) for name, size in meter.peak_bytes.items()},
        "peak_mb_of_one_process": {
            name: round(size / 1e6, 1) for name, size in meter.peak_process_bytes.items()
        },
    }


def measure_ingest(running: System, data_dir: Path, count: int) -> dict[str, Any]:
    """The time from submission until the job runs, without an engine, and then the time to cancel it."""
    path = data_dir / "ingest.jsonl"
    write_batch_file(path, count)
    with Meter(running.pids) as meter:
        started_s = time.time()
        job_id = submit(path)
        job = wait_for(lambda: job_in(job_id, "in_progress", "failed"), "the end of ingest", timeout_s=3600)
    assert job is not None and job.in_progress_at is not None
    assert (job.status, job.total, job.failed) == ("in_progress", count, 0), job
    took_s = job.in_progress_at - started_s

    from bros_batch.db import job_control
    from bros_batch.db.connections import get_database, writing
    from bros_batch.jobs.tasks import dispatch

    cancelled_s = time.time()
    with writing(get_database()) as connection:
        job_control.cancel_job(connection, job_id)
    answered_s = time.time()
    dispatch("finalize", job_id)
    job = wait_for(lambda: job_in(job_id, "cancelled"), "the cancellation", timeout_s=3600)
    assert job is not None and job.cancelled_at is not None and job.cancelled == count
    return {
        "lines": count,
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "seconds": round(took_s, 2),
        "lines_per_s": round(count / took_s),
        "cancel_call_s": round(answered_s - cancelled_s, 2),
        "cancel_and_write_files_s": round(job.cancelled_at - cancelled_s, 2),
        **measured(meter, count),
    }


def measure_pipeline(running: System, data_dir: Path, count: int) -> dict[str, Any]:
    """The time from submission to the output file, with an engine that costs almost nothing."""
    flags = ["--runner", "simulated", "--simulated-step-s", "0", "--simulated-token-s", "0"]
    flags += [
        "--model",
        str(running.model),
        "--served-model-name",
        MODEL_NAME,
        "--redis-url",
        running.redis_url,
    ]
    flags += ["--listen", f"unix://{data_dir / 'engine.sock'}", "--max-num-seqs", "256"]
    flags += ["--max-num-batched-tokens", "16384", "--be-prefetch", "256", "--max-model-len", "2048"]
    engine = running.group.start([sys.executable, "-m", "engine", *flags])
    wait_for(lambda: (data_dir / "engine.sock").exists(), "the engine", timeout_s=60)
    path = data_dir / "pipeline.jsonl"
    write_batch_file(path, count)
    with Meter({**running.pids, "engine": engine.pid}) as meter:
        job_id = submit(path)
        job = wait_for(lambda: job_in(job_id, "completed", "failed"), "the end of the job", timeout_s=3600)
    engine.stop()
    assert job is not None and (job.status, job.succeeded) == ("completed", count), job
    assert job.in_progress_at and job.finalizing_at and job.completed_at
    took_s = job.completed_at - job.created_at
    return {
        "items": count,
        "seconds": round(took_s, 2),
        "items_per_s": round(count / took_s),
        "stages_s": {
            "ingest": round(job.in_progress_at - job.created_at, 2),
            "prepare_engine_record": round(job.finalizing_at - job.in_progress_at, 2),
            "finalize": round(job.completed_at - job.finalizing_at, 2),
        },
        "running_items_per_s": round(count / (job.finalizing_at - job.in_progress_at)),
        "prompt_tokens": job.prompt_tokens,
        "output_tokens": job.output_tokens,
        **measured(meter, count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="postgres")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--ingest-lines", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    data_dir = Path(tempfile.mkdtemp(prefix="bros-pipeline-"))
    result: dict[str, Any] = {"database": options.database, "load_before": os.getloadavg()}
    try:
        with system(options.database, data_dir) as running:
            if options.items:
                result["pipeline"] = measure_pipeline(running, data_dir, options.items)
                print(json.dumps(result["pipeline"], indent=2), flush=True)
            if options.ingest_lines:
                result["ingest"] = measure_ingest(running, data_dir, options.ingest_lines)
                print(json.dumps(result["ingest"], indent=2), flush=True)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    result["load_after"] = os.getloadavg()
    print(write_result(options.out, f"pipeline-{options.database}", result))


if __name__ == "__main__":
    main()
