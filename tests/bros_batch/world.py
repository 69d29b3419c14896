"""A job system in this process: a database, Redis, and each task as a plain call, in the order a test wants."""

from __future__ import annotations

import hashlib
import json
import math
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from redis import Redis
from sqlalchemy import Connection, Engine, func, select

from bros_batch.db import files, job_control, jobs, tables
from bros_batch.db.connections import reading, writing
from bros_batch.db.states import ItemStatus
from bros_batch.db.table_rows import Item, Job
from bros_batch.jobs.finalize import finalize
from bros_batch.jobs.ingest import ingest
from bros_batch.jobs.prepare import prepare
from bros_batch.jobs.record import record
from bros_batch.jobs.sweep import sweep
from bros_batch.jobs.task_run import Progress, TaskRun
from bros_batch.jobs.worker import Worker
from bros_batch.settings import Settings
from bros_batch.text.tokenizer import ModelTokenizer, load_tokenizer
from engine.wire.item_messages import Choice, ItemRequest, ItemResult, decode_item_request, encode
from engine.wire.redis_keys import ENGINE_GROUP, RESULTS_KEY, engine_key, items_key

CHAT = "/v1/chat/completions"
FOREVER = math.inf


def batch_line(custom_id: str, content: str = "Hello", model: str = "sim", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    body = {"model": model, "messages": messages, **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def batch_lines(count: int) -> list[dict[str, Any]]:
    return [batch_line(f"doc-{number}", f"Document {number}") for number in range(count)]


def job_counts(connection: Connection, job_id: str) -> dict[ItemStatus, int]:
    """Number of items per status, counted from the rows."""
    status = tables.items.c.status
    rows = connection.execute(
        select(status, func.count()).where(tables.items.c.job_id == job_id).group_by(status)
    )
    return {**dict.fromkeys(ItemStatus, 0), **{ItemStatus(row[0]): row[1] for row in rows}}


@dataclass(frozen=True)
class Taken:
    """An item that an engine has read."""

    entry_id: bytes
    item: ItemRequest


class TinyEngine:
    """A minimal engine for the streams: it takes items and answers with the tokens of a text.

    It is so fast that any number of items may be queued for it, up to the limit of the settings.
    """

    def __init__(self, redis: Redis, model: str, tokenizer: ModelTokenizer) -> None:
        self._redis = redis
        self._tokenizer = tokenizer
        self._model = model
        self.key = items_key(model)
        self.weights = ""  # what it computes with; unless a test sets it, no answer is reused

    def announce(self, **about: Any) -> None:
        """Send a heartbeat; `about` overrides fields."""
        heartbeat = {
            "engine_id": "tiny",
            "model": self._model,
            "max_in_flight": 0,
            "items_per_s": 1e6,
            "weights": self.weights,
            **about,
        }
        self._redis.set(engine_key("tiny"), encode(heartbeat))

    def take(self, count: int = 10_000) -> list[Taken]:
        if not self._redis.exists(self.key):
            return []
        groups = {group["name"] for group in self._redis.xinfo_groups(self.key)}
        if ENGINE_GROUP.encode() not in groups:
            self._redis.xgroup_create(self.key, ENGINE_GROUP, id="0", mkstream=True)
        answer = self._redis.xreadgroup(ENGINE_GROUP, "tiny", {self.key: ">"}, count=count)
        taken = (
            Taken(entry_id, decode_item_request(fields[b"p"]))
            for _, page in answer or ()
            for entry_id, fields in page
        )
        # In the order of the rows, wherever they follow each other in the stream: those that begin alike are queued
        # together there, which is not what these tests are about.
        return [
            each
            for _, run in groupby(taken, key=lambda each: each.item.job_id)
            for each in sorted(run, key=lambda each: each.item.item_id)
        ]

    def answer(self, taken: Iterable[Taken], text: str = "An answer.", **result: Any) -> None:
        """Add the results of these items; `result` overrides fields, such as error_code."""
        token_ids = self._tokenizer.encode_prompt(text)
        pipeline = self._redis.pipeline(transaction=False)
        for each in taken:
            values: dict[str, Any] = {
                "choices": [Choice(token_ids, "stop")] * each.item.n,
                "prompt_tokens": len(each.item.token_ids),
                "memo": each.item.memo,
                "weights": self.weights,
                **result,
            }
            answer = ItemResult(each.item.item_id, each.item.epoch, each.item.job_id, "tiny", **values)
            pipeline.xadd(RESULTS_KEY, {"p": encode(answer), "s": self.key, "x": each.entry_id})
            pipeline.xack(self.key, ENGINE_GROUP, each.entry_id)
        pipeline.execute()


class World:
    def __init__(self, database: Engine, redis: Redis, settings: Settings) -> None:
        self.database = database
        self.redis = redis
        self.settings = settings
        self.tokenizer = load_tokenizer(settings.model)
        self.engine = TinyEngine(redis, settings.model_name, self.tokenizer)

    # What users do ---------------------------------------------------------------------------------------------

    def submit(self, lines: Iterable[dict[str, Any]] | bytes, **job: Any) -> str:
        """A job over a file of these lines, or of these bytes."""
        data = lines
        if not isinstance(data, bytes):
            data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        self.settings.files_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.settings.files_dir / f"file-{uuid.uuid4().hex[:24]}"
        path.write_bytes(data)
        with writing(self.database) as connection:
            files.create_file(
                connection,
                purpose="batch",
                filename="in.jsonl",
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                path=str(path),
                file_id=path.name,
            )
            values = {"endpoint": CHAT, "model": self.settings.model_name, **job}
            return jobs.create_job(connection, input_file_id=path.name, **values).id

    def running(self, lines: Iterable[dict[str, Any]] | bytes, **job: Any) -> str:
        """A job that has been ingested."""
        job_id = self.submit(lines, **job)
        assert self.ingest(job_id).progress is Progress.DONE
        assert self.job(job_id).status == "in_progress"
        return job_id

    def cancel(self, job_id: str) -> Job:
        with writing(self.database) as connection:
            return job_control.cancel_job(connection, job_id)

    # What tasks do ---------------------------------------------------------------------------------------------

    @property
    def worker(self) -> Worker:
        return Worker(self.settings, self.database, self.redis)

    def ingest(self, job_id: str, until_s: float = FOREVER) -> TaskRun:
        return ingest(self.worker, job_id, until_s)

    def prepare(self, until_s: float = FOREVER) -> TaskRun:
        """Prepare items as for an engine that takes as many as the settings allow."""
        self.engine.announce()
        return prepare(self.worker, self.settings.model_name, until_s)

    def record(self) -> TaskRun:
        return record(self.worker, FOREVER)

    def finalize(self, job_id: str, until_s: float = FOREVER) -> TaskRun:
        return finalize(self.worker, job_id, until_s)

    def sweep(self, later_s: float = 0.0) -> TaskRun:
        """Sweep as if `later_s` had passed."""
        return sweep(self.worker, time.time() + later_s)

    def run_through(self, job_id: str) -> Job:
        """Prepare, answer, record and finalize until the job has ended."""
        while self.job(job_id).status in ("in_progress", "paused"):
            prepared = self.prepare()
            taken = self.engine.take()
            self.engine.answer(taken)
            assert self.record().changed or prepared.failed or prepared.reused, "the job makes no progress"
        self.finalize(job_id)
        return self.job(job_id)

    # What can be seen ------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        with reading(self.database) as connection:
            job = jobs.get_job(connection, job_id)
        assert job is not None
        return job

    def items(self, job_id: str, status: ItemStatus | None = None) -> list[Item]:
        with reading(self.database) as connection:
            query = select(tables.items).where(tables.items.c.job_id == job_id)
            if status is not None:
                query = query.where(tables.items.c.status == status)
            return [Item(*row) for row in connection.execute(query.order_by(tables.items.c.line_no))]

    def statuses(self, job_id: str) -> list[str]:
        return [item.status for item in self.items(job_id)]

    def file_lines(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        with reading(self.database) as connection:
            file = files.get_file(connection, file_id)
        assert file is not None
        data = Path(file.path).read_bytes()
        assert len(data) == file.bytes
        assert hashlib.sha256(data).hexdigest() == file.sha256
        return [json.loads(line) for line in data.splitlines()]

    def queue_length(self) -> int:
        return int(self.redis.xlen(items_key(self.settings.model_name)))

    def check_counts(self, job_id: str) -> Job:
        """Check that the counters of a job equal its rows."""
        job = self.job(job_id)
        with reading(self.database) as connection:
            counts = job_counts(connection, job_id)
        ended = {status: getattr(job, status.value) for status in counts if hasattr(job, status.value)}
        assert ended == {status: counts[status] for status in ended}
        assert job.total == sum(counts.values())
        items = self.items(job_id)
        assert job.prompt_tokens == sum(item.prompt_tokens for item in items)
        assert job.output_tokens == sum(item.output_tokens for item in items)
        return job
