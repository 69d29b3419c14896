"""Do jobs end when their forecasts say so?

    python -m benchmarks.forecast [--jobs 50] [--rows 20-2000] [--minutes 9] [--chats 2] [--seed 1]

Jobs of different kinds, sizes and priorities run one or two at a time on the demo model, beside chats. When the minutes
are over, no further job is submitted. Of each job, the forecasts that the
service gives are compared with the time that it really takes: that of the dry run, before it is submitted, and those
of the batch object while it runs. The 80% interval should contain the true end of at least 80% of the jobs, and once
1% of its rows are done, the median error should be at most 10%. Writes a JSON file.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any, cast

from benchmarks.machine import write_result
from benchmarks.own_up import own_up
from bros_batch.client.http_client import Client
from bros_batch.db.states import ENDED_JOB
from bros_batch.demo.documents import HELD_OUT_SEED, generate_documents
from bros_batch.settings import DEMO_MODEL_DIR

POLL_S = 0.2
AT_SHARES = (0.01, 0.1, 0.5)
FIELDS = ("vendor", "date", "total", "currency")
KINDS: dict[str, dict[str, Any]] = {
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
    """A forecast, and the seconds that there really were."""

    p10: float
    p50: float
    p90: float
    took: float = 0.0

    @property
    def is_covered(self) -> bool:
        return self.p10 <= self.took <= self.p90

    @property
    def error(self) -> float:
        return abs(self.p50 - self.took) / max(self.took, 0.1)


@dataclass(slots=True)
class Measured:
    """The predictions of a job: `before` it was submitted, and by the share of rows that were done, `while` it ran."""

    kind: str
    rows: int
    seconds: float = 0.0
    before: Prediction | None = None
    after_share: dict[str, Prediction] = field(default_factory=dict)


def run_job(client: Client, kind: str, texts: list[str], priority: int = 0) -> Measured:
    defaults = KINDS[kind]
    lines = [json.dumps({"text": text}) for text in texts]
    job = {"endpoint": "/v1/chat/completions", "defaults": defaults, "priority": priority}
    sampled = [{"row": number, "line": line} for number, line in enumerate(lines, start=1)]
    measured = Measured(kind, len(texts))
    answer = client.post(
        "/v1/batches/forecast", {**job, "fresh": True, "rows": len(lines), "lines": sampled}
    )["forecast"]
    measured.before = None if answer is None else Prediction(**answer)
    begun_s = time.monotonic()
    file = client.upload("rows.jsonl", cast("Any", BytesIO("\n".join(lines).encode())))
    batch = client.create_batch(
        {**job, "input_file_id": file["id"], "completion_window": "24h", "fresh": True, "name": kind}
    )
    seen: dict[str, tuple[float, Prediction]] = {}
    while batch["status"] not in ENDED_JOB:
        time.sleep(POLL_S)
        batch = client.batch(batch["id"])
        now_s = time.monotonic()
        done = sum(batch["item_counts"].values())
        for share in AT_SHARES:
            if batch["forecast"] and done >= max(share * len(lines), 1) and str(share) not in seen:
                seen[str(share)] = (now_s, Prediction(**batch["forecast"]))
    ended_s = time.monotonic()
    measured.seconds = ended_s - begun_s
    if measured.before is not None:
        measured.before.took = measured.seconds
    for share_name, (at_s, prediction) in seen.items():
        prediction.took = ended_s - at_s
        measured.after_share[share_name] = prediction
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


def measure(url: str, options: argparse.Namespace) -> list[Measured]:
    chosen = random.Random(options.seed)
    low, _, high = options.rows.partition("-")
    sizes = [round(int(low) * (int(high) / int(low)) ** chosen.random()) for _ in range(options.jobs)]
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
    width = median((each.p90 - each.p10) / max(each.p50, 0.1) for each in predictions)
    print(
        f"{name:16} {len(predictions):3} forecasts, {covered:4.0%} covered, median error {error:5.1%}", end=""
    )
    print(f", median width {width:4.0%}")
    return {
        "name": name,
        "forecasts": len(predictions),
        "covered": covered,
        "median_error": error,
        "width": width,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, default=Path(DEMO_MODEL_DIR))
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--rows", default="20-2000", metavar="LOW-HIGH")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--chats", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        flags = ("--model", str(options.model_dir))
        with own_up(Path(directory) / "data", *flags) as up:
            found = measure(up["url"], options)
    summaries = [summary("before", [each.before for each in found if each.before is not None])]
    for share in map(str, AT_SHARES):
        predictions = [each.after_share[share] for each in found if share in each.after_share]
        summaries.append(summary(f"at {float(share):.0%} of rows", predictions))
    result = {
        "model": options.model_dir.name,
        "jobs": len(found),
        "rows": options.rows,
        "chats": options.chats,
        "summaries": summaries,
        "measured": [asdict(each) for each in found],
    }
    print(write_result(options.out, "forecast", result))


if __name__ == "__main__":
    main()
