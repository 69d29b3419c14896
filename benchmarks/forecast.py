"""Do jobs end when their forecasts say so?

    python -m benchmarks.forecast [--jobs 50] [--rows 20-300] [--large-rows 1000-1500] [--minutes 8] [--chats 2]
        [--seed 1]

Jobs of different kinds, sizes and priorities run one or two at a time on the demo model, beside chats. Every fifth is
large. When the minutes are over, no further job is submitted. Of each job, the forecasts that the service gives are
compared with the time that it really takes: that of the dry run, before it is submitted, and those of the batch object
while it runs. The 80% interval should contain the true end of at least 80% of the jobs, and once 1% of the rows of a
large job are done, the median error should be at most 10%.

No forecast knows how fast a shared machine will be. So the error is also given for the time that the job would have
taken if the machine had kept the pace of the minute before the forecast. Writes a JSON file with all forecasts, what
the service knew of the jobs, and the counters of the engine twice a second. `benchmarks.forecast_simulated` does the
same on an engine of a steady pace.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, field
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, cast

from benchmarks.machine import write_result
from benchmarks.machine_pace import MachinePace
from benchmarks.own_up import own_up
from bros_batch.client.http_client import Client
from bros_batch.db.states import ENDED_JOB
from bros_batch.demo.documents import HELD_OUT_SEED, generate_documents
from bros_batch.settings import DEMO_MODEL_DIR

POLL_S = 0.2
PACE_S = 60.0
LARGE_EVERY = 5
# By the share of the rows that are done: how many rows a job must have for that share to be some rows.
AT_SHARES = {0.01: 1000, 0.1: 100, 0.5: 20}
FIELDS = ("vendor", "date", "total", "currency")
QUESTIONS = ("Is this an invoice?", "Is it paid?", "Is the total above 100?")
KINDS: dict[str, dict[str, Any]] = {
    "decisions": {
        "prompt": "{text}",
        "questions": [{"type": "predicate", "instructions": each} for each in QUESTIONS],
    },
    "short": {"prompt": "Who issued this? {text}", "max_tokens": 8},
    "label": {
        "prompt": "Is this an invoice? {text}",
        "max_tokens": 4,
        "structured_outputs": {"choice": ["yes", "no"]},
    },
    "summary": {"prompt": "Summarize: {text}", "max_tokens": 100},
    "sampled": {"prompt": "Reply to this: {text}", "max_tokens": 60, "temperature": 1.0},
    "long": {"prompt": "Who issued this? {text}\n\n{text}\n\n{text}\n\n{text}", "max_tokens": 20},
    "fields": {
        "prompt": "Extract the fields. {text}",
        "max_tokens": 200,
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "fields",
                "schema": {
                    "type": "object",
                    "properties": {name: {"type": "string", "maxLength": 20} for name in FIELDS},
                    "required": list(FIELDS),
                    "additionalProperties": False,
                },
            },
        },
    },
}


@dataclass(slots=True)
class Prediction:
    """A forecast, and the seconds that there really were. `known` is what the batch object said of the job."""

    p10: float
    p50: float
    p90: float
    at_s: float = 0.0
    took: float = 0.0
    steady: float | None = None  # what it would have taken if the machine had kept its pace
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def is_covered(self) -> bool:
        return self.p10 <= self.took <= self.p90

    @property
    def error(self) -> float:
        return abs(self.p50 - self.took) / max(self.took, 0.1)

    @property
    def steady_error(self) -> float | None:
        return None if self.steady is None else abs(self.p50 - self.steady) / max(self.steady, 0.1)

    def end(self, ended_s: float) -> None:
        self.took = ended_s - self.at_s

    def judge(self, pace: MachinePace) -> None:
        """Set `steady`, once the looks at the machine are complete."""
        before = pace.between(self.at_s - PACE_S, self.at_s)
        meanwhile = pace.between(self.at_s, self.at_s + self.took)
        if before and meanwhile:
            self.steady = self.took * meanwhile / before


@dataclass(slots=True)
class Measured:
    """The predictions of a job: `before` it was submitted, and by the share of rows that were done, `while` it ran."""

    kind: str
    rows: int
    seconds: float = 0.0
    before: Prediction | None = None
    after_share: dict[str, Prediction] = field(default_factory=dict)

    @property
    def predictions(self) -> list[Prediction]:
        return [*self.after_share.values(), *([] if self.before is None else [self.before])]


def run_job(client: Client, kind: str, texts: list[str], priority: int = 0) -> Measured:
    defaults = KINDS[kind]
    lines = [json.dumps({"text": text}) for text in texts]
    endpoint = "/v1/decisions" if "questions" in defaults else "/v1/chat/completions"
    job = {"endpoint": endpoint, "defaults": defaults, "priority": priority}
    sampled = [{"row": number, "line": line} for number, line in enumerate(lines, start=1)]
    measured = Measured(kind, len(texts))
    answer = client.post(
        "/v1/batches/forecast", {**job, "fresh": True, "rows": len(lines), "lines": sampled}
    )["forecast"]
    begun_s = time.monotonic()
    if answer is not None:
        measured.before = Prediction(**answer, at_s=begun_s)
    file = client.upload("rows.jsonl", cast("Any", BytesIO("\n".join(lines).encode())))
    batch = client.create_batch(
        {**job, "input_file_id": file["id"], "completion_window": "24h", "fresh": True, "name": kind}
    )
    while batch["status"] not in ENDED_JOB:
        time.sleep(POLL_S)
        batch = client.batch(batch["id"])
        now_s = time.monotonic()
        done = sum(batch["item_counts"].values())
        for share, least in AT_SHARES.items():
            is_due = len(lines) >= least and done >= share * len(lines)
            if batch["forecast"] and is_due and str(share) not in measured.after_share:
                known = {name: batch[name] for name in ("item_counts", "usage")}
                measured.after_share[str(share)] = Prediction(**batch["forecast"], at_s=now_s, known=known)
    ended_s = time.monotonic()
    measured.seconds = ended_s - begun_s
    for prediction in measured.predictions:
        prediction.end(ended_s)
    return measured


def chat(url: str, is_over: threading.Event, seed: int) -> None:
    """Chat with pauses until the measurement is over."""
    pauses = random.Random(seed)
    with Client(url) as client:
        model = client.served_model()
        while not is_over.wait(pauses.expovariate(0.5)):
            body = {
                "model": model,
                "messages": [{"role": "user", "content": f"What is {pauses.random()}?"}],
                "max_tokens": 60,
            }
            for _ in client.stream_chat(body):
                pass


def sizes_of(options: argparse.Namespace, chosen: random.Random) -> list[int]:
    """The rows of each job: as many small jobs as large ones of any size in a range, by the logarithm."""
    sizes = []
    for number in range(options.jobs):
        text = options.large_rows if number % LARGE_EVERY == LARGE_EVERY - 1 else options.rows
        low, high = (int(each) for each in text.split("-"))
        sizes.append(round(low * (high / low) ** chosen.random()))
    return sizes


def measure(url: str, options: argparse.Namespace) -> list[Measured]:
    chosen = random.Random(options.seed)
    sizes = sizes_of(options, chosen)
    kinds = [list(KINDS)[number % len(KINDS)] for number in range(options.jobs)]
    chosen.shuffle(kinds)
    texts = [each.text for each in generate_documents(sum(sizes), HELD_OUT_SEED + options.seed)]
    starts = [sum(sizes[:number]) for number in range(options.jobs)]
    priorities = [chosen.choice((0, 0, 0, 5)) for _ in range(options.jobs)]
    is_over = threading.Event()
    until_s = time.monotonic() + 60 * options.minutes

    def run(number: int) -> Measured | None:
        if time.monotonic() > until_s:
            return None
        mine = texts[starts[number] : starts[number] + sizes[number]]
        with Client(url) as client:
            measured = run_job(client, kinds[number], mine, priorities[number])
        print(measured, flush=True)
        return measured

    with ThreadPoolExecutor(options.chats + 2) as threads:
        chats = [threads.submit(chat, url, is_over, number) for number in range(options.chats)]
        try:
            with Client(url) as client:  # the engine has computed some bulk before the first forecast
                run_job(client, "summary", ["A first document."] * 8)
            jobs = [threads.submit(run, number) for number in range(options.jobs)]
            found = [measured for job in jobs if (measured := job.result()) is not None]
        finally:
            is_over.set()
    for each in chats:
        each.result()
    return found


def summary(name: str, predictions: list[Prediction]) -> dict[str, Any]:
    if not predictions:
        return {"name": name, "forecasts": 0}
    covered = sum(each.is_covered for each in predictions) / len(predictions)
    error = median(each.error for each in predictions)
    steady = [each.steady_error for each in predictions if each.steady_error is not None]
    width = median((each.p90 - each.p10) / max(each.p50, 0.1) for each in predictions)
    print(
        f"{name:24} {len(predictions):3} forecasts, {covered:4.0%} covered, median error {error:5.1%}", end=""
    )
    print(f" ({median(steady):5.1%} at a steady pace)" if steady else "", f"median width {width:4.0%}")
    return {
        "name": name,
        "forecasts": len(predictions),
        "covered": covered,
        "median_error": error,
        "median_error_at_steady_pace": median(steady) if steady else None,
        "width": width,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, default=Path(DEMO_MODEL_DIR))
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--rows", default="20-300", metavar="LOW-HIGH")
    parser.add_argument("--large-rows", default="1000-1500", metavar="LOW-HIGH")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--chats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        flags = ("--model", str(options.model_dir))
        with own_up(Path(directory) / "data", *flags) as up:
            pace = MachinePace()
            with ThreadPoolExecutor(1) as threads:
                watching = threads.submit(pace.watch, up["engine_url"])
                try:
                    found = measure(up["url"], options)
                finally:
                    pace.stop()
                watching.result()
    for each in found:
        for prediction in each.predictions:
            prediction.judge(pace)
    summaries = [summary("before", [each.before for each in found if each.before is not None])]
    for share, least in AT_SHARES.items():
        predictions = [each.after_share[str(share)] for each in found if str(share) in each.after_share]
        summaries.append(summary(f"at {share:.0%} of {least:,}+ rows", predictions))
    result = {
        "model": options.model_dir.name,
        "jobs": len(found),
        "rows": [each.rows for each in found],
        "chats": options.chats,
        "summaries": summaries,
        "measured": [asdict(each) for each in found],
        "looks": [astuple(each) for each in pace.looks],
    }
    print(write_result(options.out, "forecast", result))


if __name__ == "__main__":
    main()
