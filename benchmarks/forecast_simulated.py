"""Do forecasts hold on a machine of a steady pace?

    python -m benchmarks.forecast_simulated [--jobs 50] [--rows 1000-2000] [--seed 1]

As `benchmarks.forecast`, but the engine is the real loop and scheduler on a virtual clock around a simulated device, so
only the forecasts themselves can be wrong: the lengths of outputs, the tail of a job, the queue, chats, and more urgent
jobs that come later. The database is a real one in a temporary directory. Lengths are like those of the demo model. A
job comes as soon as another one ends, so that two are in progress. 50 jobs take a minute or two. Writes a JSON file.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, update

from benchmarks.forecast import AT_SHARES, Prediction, summary
from benchmarks.machine import write_result
from bros_batch.db import engines, tables
from bros_batch.db.connections import open_database, writing
from bros_batch.db.jobs import create_job
from bros_batch.db.pace import running_jobs
from bros_batch.web.engine_pace import EnginePace
from bros_batch.web.forecast_log import ForecastLog
from bros_batch.web.job_forecasts import forecasts
from engine.core.events import finished_among
from engine.core.request import Request
from engine.core.terms import Lane, SamplingParams
from engine.loop import EngineLoop
from engine.loop_messages import Add, LoopEvent, Message, Stop
from engine.runner.base import RunnerInfo
from engine.sim.clock import VirtualClock
from engine.sim.device import Device, StepCost
from engine.sim.replay import BLOCK_SIZE, Setup
from engine.sim.trace_runner import TraceRunner

MODEL, CHAT = "simulated", "/v1/chat/completions"
IN_FLIGHT = 96
IN_PROGRESS = 2
CHATS = 2
LOOK_S = 1.0
READ_S, RECORD_S = 0.4, 0.15  # from the submission to the first row, and from the last row to the end
# By kind: tokens of prompts and outputs, each as mean and standard deviation, and the limit of outputs.
KINDS = {
    "short": ((135, 22), (6, 1.5), 8),
    "label": ((135, 22), (3, 0), 4),
    "summary": ((133, 22), (38, 5), 100),
    "sampled": ((133, 22), (33, 18), 60),
    "long": ((505, 85), (17, 4.5), 20),
    "fields": ((136, 22), (36, 3.3), 200),
}
# Steps of the demo model on two cores.
DEVICE = Device(
    "demo",
    StepCost(step_s=4e-3, token_s=0.09e-3, row_s=0.1e-3, context_s=0.5e-6, pair_s=0.12e-6),
    kv_tokens=65536,
    host_tokens=0,
    max_num_seqs=64,
    max_num_batched_tokens=512,
    max_model_len=1024,
)


@dataclass(slots=True)
class SimulatedJob:
    id: str
    kind: str
    priority: int
    rows: list[tuple[int, int]]  # tokens of prompt and output
    created_s: float
    num_fed: int = 0
    ended: list[tuple[int, int, int]] = field(default_factory=list)  # number of the row and its tokens
    num_stored: int = 0
    is_queued: bool = False
    ended_s: float | None = None
    seen: dict[str, Prediction] = field(default_factory=dict)


class Simulation:
    """Jobs that come one after the other, and chats, on one engine. Its `receive` and `send` are those of the loop."""

    def __init__(self, connection: Connection, num_jobs: int, rows: str, seed: int) -> None:
        self.jobs: list[SimulatedJob] = []
        self._connection = connection
        self._random = random.Random(seed)
        self._low, self._high = (int(each) for each in rows.split("-"))
        self._kinds = [list(KINDS)[number % len(KINDS)] for number in range(num_jobs)]
        self._random.shuffle(self._kinds)
        self._numbers = count(1)
        self._chat_at_s: list[float | None] = [self._random.expovariate(0.5) for _ in range(CHATS)]
        self._of_request: dict[str, tuple[SimulatedJob, int] | int] = {}
        self._next_look_s = 0.0
        self._pace, self._log = EnginePace(), ForecastLog()
        self._clock = VirtualClock()
        self._tokens: dict[str, int] = {}
        setup = Setup(DEVICE, noise=0.1, seed=seed)
        self._slo, self._scheduler = setup.slo, setup.scheduler()
        info = RunnerInfo(
            num_blocks=self._scheduler.kv.num_blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=DEVICE.max_num_seqs,
            max_model_len=DEVICE.max_model_len,
            vocab_size=1 << 20,
            device=DEVICE.name,
            dtype="none",
        )
        self._runner = TraceRunner(info, DEVICE.cost, self._clock, self._tokens, noise=0.1, seed=seed)
        self._loop = EngineLoop(self._scheduler, self._runner, self.receive, self.send, self._clock)

    def run(self) -> None:
        for _ in range(IN_PROGRESS):
            self._submit()
        self._loop.run()

    def receive(self, timeout_s: float | None) -> list[Message]:
        while self._next_look_s <= self._clock.now_s:
            self._look()
            self._next_look_s += LOOK_S
        found = self._arrived()
        if timeout_s != 0.0 and not found:
            times = [self._next_look_s, *(each for each in self._chat_at_s if each is not None)]
            self._clock.jump_to(
                min([*times, *([] if timeout_s is None else [self._clock.now_s + timeout_s])])
            )
            found = self._arrived()
        return found if self._in_progress() or self._kinds else [Stop()]

    def send(self, events: Sequence[LoopEvent]) -> None:
        for event in finished_among(events):
            del self._tokens[event.request_id]
            whose = self._of_request.pop(event.request_id)
            if isinstance(whose, int):
                self._chat_at_s[whose] = self._clock.now_s + self._random.expovariate(0.5)
                continue
            job, number = whose
            job.ended.append((number, *job.rows[number]))
            if len(job.ended) == len(job.rows):
                self._end(job)

    def _submit(self) -> None:
        if not self._kinds:
            return
        chosen, kind = self._random, self._kinds.pop()
        prompt, output, limit = KINDS[kind]
        rows = [
            (max(round(chosen.gauss(*prompt)), 20), min(max(round(chosen.gauss(*output)), 1), limit))
            for _ in range(round(self._low * (self._high / self._low) ** chosen.random()))
        ]
        now_s, priority = self._clock.now_s, chosen.choice((0, 0, 0, 5))
        made = create_job(
            self._connection,
            input_file_id="file",
            endpoint=CHAT,
            model=MODEL,
            priority=priority,
            defaults={"prompt": kind, "max_tokens": limit},
            now_s=now_s,
        )
        job = SimulatedJob(made.id, kind, priority, rows, now_s)
        size = sum(4 * tokens for tokens, _ in rows)
        self._set(job, status="in_progress", total=len(rows), ingest_line=len(rows), ingest_offset=size)
        self.jobs.append(job)

    def _end(self, job: SimulatedJob) -> None:
        job.ended_s = self._clock.now_s + RECORD_S
        self._store(job)
        self._set(job, status="completed", completed_at=job.ended_s)
        for each in job.seen.values():
            each.end(job.ended_s)
        self._submit()

    def _in_progress(self) -> list[SimulatedJob]:
        return [job for job in self.jobs if job.ended_s is None]

    def _arrived(self) -> list[Message]:
        found: list[Message] = []
        now_s = self._clock.now_s
        for number, at_s in enumerate(self._chat_at_s):
            if at_s is not None and at_s <= now_s:
                self._chat_at_s[number] = None
                found.append(self._request(Lane.RT, 30, self._random.randint(20, 60), number))
        free = IN_FLIGHT - sum(job.num_fed - len(job.ended) for job in self._in_progress())
        for job in sorted(self._in_progress(), key=lambda job: (-job.priority, job.created_s)):
            while free > 0 and now_s >= job.created_s + READ_S and job.num_fed < len(job.rows):
                prompt, output = job.rows[job.num_fed]
                found.append(self._request(Lane.BE, prompt, output, (job, job.num_fed), job.priority))
                job.num_fed += 1
                free -= 1
        return found

    def _request(
        self, lane: Lane, prompt: int, output: int, whose: tuple[SimulatedJob, int] | int, priority: int = 0
    ) -> Add:
        number = next(self._numbers)
        name = f"{lane.value}-{number}"
        self._tokens[name] = output
        self._of_request[name] = whose
        slo = self._slo if lane is Lane.RT else None
        sampling = SamplingParams(max_tokens=DEVICE.max_model_len)
        tokens, now_s = [number % (1 << 20)] * prompt, self._clock.now_s
        return Add(Request(name, lane, tokens, sampling, arrival_s=now_s, slo=slo, priority=priority))

    def _look(self) -> None:
        """What the web process does once per second, and what somebody sees who looks at the jobs."""
        now_s = self._clock.now_s
        stats = self._loop.metrics.snapshot(self._scheduler, self._runner.grammars.counts)
        engine = {"engine_id": "simulated", "model": MODEL, "stats": stats}
        engines.upsert_engines(self._connection, [engine], now_s)
        self._pace.observe(stats, now_s)
        for job in self._in_progress():
            self._store(job)
        running = running_jobs(self._connection)
        self._log.note(self._connection, self._pace, running, now_s)
        if self._log.has_ended(running):
            self._log.learn(self._connection, running)
        found = forecasts(self._connection, self._pace, running, now_s)
        for job in self._in_progress():
            for share in (0.0, *AT_SHARES):
                is_due = len(job.ended) >= share * len(job.rows)
                if is_due and job.id in found and str(share) not in job.seen:
                    shown = found[job.id]
                    job.seen[str(share)] = Prediction(shown.p10, shown.p50, shown.p90, at_s=now_s)

    def _store(self, job: SimulatedJob) -> None:
        """Store the rows that have ended since the last time."""
        if job.num_fed and not job.is_queued:
            job.is_queued = True  # which shows by one item that is
            queued = {"job_id": job.id, "line_no": len(job.rows), "status": "queued"}
            self._connection.execute(insert(tables.items).values(**queued))
        new = job.ended[job.num_stored :]
        job.num_stored = len(job.ended)
        if new:
            rows = [
                {
                    "job_id": job.id,
                    "line_no": number,
                    "status": "succeeded",
                    "prompt_tokens": prompt,
                    "output_tokens": output,
                }
                for number, prompt, output in new
            ]
            self._connection.execute(insert(tables.items), rows)
        self._set(
            job,
            succeeded=len(job.ended),
            prompt_tokens=sum(each[1] for each in job.ended),
            output_tokens=sum(each[2] for each in job.ended),
        )

    def _set(self, job: SimulatedJob, **values: Any) -> None:
        self._connection.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(**values))


def simulate(num_jobs: int, rows: str, seed: int) -> list[SimulatedJob]:
    """Run jobs with numbers of rows in a range, as in `1000-2000`, and return them with their forecasts."""
    with tempfile.TemporaryDirectory() as directory:
        database = open_database(f"sqlite:///{directory}/jobs.db")
        tables.metadata.create_all(database)
        with writing(database) as connection:
            simulation = Simulation(connection, num_jobs, rows, seed)
            simulation.run()
        database.dispose()
    return simulation.jobs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--rows", default="1000-2000", metavar="LOW-HIGH")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    jobs = simulate(options.jobs, options.rows, options.seed)
    summaries = []
    for share in ("0.0", *map(str, AT_SHARES)):
        predictions = [job.seen[share] for job in jobs if share in job.seen]
        summaries.append(summary(f"at {float(share):.0%} of rows", predictions))
    found = [
        {"kind": job.kind, "rows": len(job.rows), **{name: asdict(each) for name, each in job.seen.items()}}
        for job in jobs
    ]
    result = {"rows": options.rows, "seed": options.seed, "summaries": summaries, "measured": found}
    print(write_result(options.out, "forecast_simulated", result))


if __name__ == "__main__":
    main()
