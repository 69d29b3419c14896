"""How long does a page of a large job's rows take, and how long does it take to write all rows as a table?

    python -m benchmarks.rows [--rows 1000000] [--output results.parquet] [--keep DIR]

A database (SQLite) is filled with an ended job of that many rows: a document of eight columns and an answer that
follows a schema. The web server runs as a process, without an engine. Pages of 100 rows are asked for at the
beginning, in the middle and at the end of the job, in both directions, by status and by text. Then `bros-batch
results` writes the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import update

from benchmarks.machine import write_result
from bros_batch.db import jobs, tables
from bros_batch.db.connections import open_database, writing
from bros_batch.db.schema import upgrade
from bros_batch.db.states import JobStatus
from bros_batch.up.preflight import choose_port
from bros_batch.up.service_commands import environment, web_command
from tests.bros_batch.web.serving import web_settings
from tests.factories_text import make_text_model
from tests.services import processes, wait_for

INSERT = (
    "INSERT INTO items (job_id, line_no, custom_id, status, epoch, body, result, error_code, error_message, "
    "prompt_tokens, output_tokens, queued_at, finished_at) VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, 80, 20, 1.0, 2.0)"
)
GROUP = 20_000
FAILED_EVERY = 9_999
COLUMNS = ["id", "date", "vendor", "country", "amount", "paid", "note", "text"]
REPEATS = 7


def body_of(row: int) -> str:
    values = (
        row,
        "2026-03-01",
        f"Vendor {row % 977} Ltd",
        "CZ",
        row / 8,
        row % 2 == 0,
        None,
        f"Invoice {row} of ACME",
    )
    return json.dumps(dict(zip(COLUMNS, values, strict=True)))


def result_of(row: int) -> str:
    answer = json.dumps({"vendor": f"Vendor {row % 977} Ltd", "total": row / 8, "is_late": row % 3 == 0})
    message = {"role": "assistant", "content": answer}
    return json.dumps(
        {
            "id": f"req_{row:024x}",
            "object": "chat.completion",
            "created": 1764374400,
            "model": "tiny",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 80, "completion_tokens": 20, "total_tokens": 100},
        }
    )


def fill(url: str, num_rows: int) -> str:
    """Make an ended job of this many rows. Returns its id."""
    upgrade(url)
    database = open_database(url)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    with writing(database) as connection:
        job = jobs.create_job(
            connection,
            input_file_id="file-0",
            endpoint="/v1/chat/completions",
            model="tiny",
            defaults={"prompt": "{text}", "response_format": schema},
            source={"columns": COLUMNS},
        )
    failed = size = 0
    for start in range(1, num_rows + 1, GROUP):
        values: list[Any] = []
        for row in range(start, min(start + GROUP, num_rows + 1)):
            body = body_of(row)
            size += len(body) + 1
            fails = row % FAILED_EVERY == 0
            failed += fails
            end = (
                ("failed", body, None, "x", "It failed.")
                if fails
                else ("succeeded", body, result_of(row), None, None)
            )
            values.append((job.id, row, str(row), *end))
        with writing(database) as connection:
            connection.exec_driver_sql(INSERT, values)
    with writing(database) as connection:
        connection.execute(
            update(tables.jobs)
            .where(tables.jobs.c.id == job.id)
            .values(
                status=JobStatus.COMPLETED.value,
                total=num_rows,
                succeeded=num_rows - failed,
                failed=failed,
                ingest_form="document",
                ingest_line=num_rows,
                ingest_offset=size,
            )
        )
    database.dispose()
    return job.id


@contextlib.contextmanager
def filled_server(temporary: Path, keep: Path | None, num_rows: int) -> Iterator[tuple[str, str]]:
    """Run the web server over a database with an ended job of this many rows. Yields its URL and the job's id.

    The database is made in the directory `keep`, unless it is there already; without one, in `temporary`.
    """
    directory = keep or temporary
    url = f"sqlite:///{directory / 'rows.db'}"
    known = directory / "job"
    if not known.exists():
        directory.mkdir(parents=True, exist_ok=True)
        known.write_text(fill(url, num_rows))
    upgrade(url)  # a database that was kept may be older
    job = known.read_text()
    model = make_text_model(temporary / "model")
    port = choose_port("127.0.0.1", 0)
    settings = web_settings(temporary / "data", model, port=port, database_url=url)
    with processes() as group:
        group.env = environment(settings)
        server = group.start([*web_command()])
        base = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert server.running, server.output()
            try:
                return httpx.get(f"{base}/v1/batches/{job}").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(answers, "the server")
        yield base, job


def page_ms(client: httpx.Client, job: str, **params: Any) -> float:
    """The median time of a request for a page."""
    times = []
    for _ in range(REPEATS):
        start_s = time.perf_counter()
        page = client.get(f"/v1/batches/{job}/rows", params=params).raise_for_status().json()
        times.append((time.perf_counter() - start_s) * 1000)
        assert page["data"] or "search" in params, params
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--output", default="results.parquet", help="name of the table, whose suffix is its format"
    )
    parser.add_argument(
        "--keep", type=Path, help="keep the database in this directory, and use the one that is there"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as temporary,
        filled_server(Path(temporary), arguments.keep, arguments.rows) as (base, job),
    ):
        end = arguments.rows
        with httpx.Client(base_url=base, timeout=60) as client:
            pages = {
                "first": page_ms(client, job),
                "middle": page_ms(client, job, after=end // 2),
                "last": page_ms(client, job, after=end - 100),
                "last, descending": page_ms(client, job, order="desc"),
                "middle, descending": page_ms(client, job, order="desc", after=end // 2),
                "succeeded, middle": page_ms(client, job, status="succeeded", after=end // 2),
                "failed": page_ms(client, job, status="failed"),
                "1,000 rows": page_ms(client, job, limit=1000, after=end // 2),
                "search, found at once": page_ms(client, job, search="ACME", after=end // 2),
                "search, one in 977": page_ms(client, job, search="vendor 13 ltd"),
                "search, nothing found": page_ms(client, job, search="nowhere"),
            }
            row_ms = []
            for row in (1, end // 2, end):
                start_s = time.perf_counter()
                client.get(f"/v1/batches/{job}/rows/{row}").raise_for_status()
                row_ms.append((time.perf_counter() - start_s) * 1000)
            pages["one row"] = statistics.median(row_ms)
        for name, value in pages.items():
            print(f"{name:24} {value:8.1f} ms")
        output = Path(temporary) / arguments.output
        command = [sys.executable, "-m", "cli", "results", job, "-o", str(output), "--url", base]
        start_s = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start_s
        peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(
            f"{output.name}: {seconds:.1f} s, {output.stat().st_size / 1e6:.0f} MB, peak of a process {peak_mb:.0f} MB"
        )
        result = {
            "rows": end,
            "page_ms": pages,
            "table": output.suffix,
            "table_s": seconds,
            "peak_mb": peak_mb,
        }
        write_result(arguments.out, "rows", result)


if __name__ == "__main__":
    main()
