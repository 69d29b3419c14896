"""How much do bulk and chat suffer when other programs use the CPU as well?

    python -m benchmarks.busy_machine --model-dir bros_batch/demo/model --spinning 0,4,16

Runs the load of the serving benchmark (endless bulk, and chats on a schedule) on a server of its own, beside different
numbers of processes that compute without pause. The operating system then leaves the engine a smaller share of the CPU.
The benchmark compares that share with what becomes of bulk's tokens per second:

    kept = (bulk tokens/s beside N processes / alone) / (CPU seconds/s of the engine beside N processes / alone)

1 means that bulk falls exactly in proportion. Chats come first and do not become fewer, so that bulk gets less than its
proportion where they take much of what is left; `both kept` counts the tokens of both. Writes a JSON file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result
from benchmarks.serving.__main__ import until_ready
from benchmarks.serving.client import Client
from benchmarks.serving.load import FIRST_TEXT_ID, Load
from benchmarks.serving.own_server import Server, own_server
from benchmarks.serving.phase import Observed, Timing, observe
from benchmarks.serving.report import Limits, beside_each_other, report


def spin() -> None:
    """Compute without pause until the process is killed."""
    while True:
        pass


@contextlib.contextmanager
def spinning(count: int) -> Iterator[None]:
    """Run `count` processes that compute without pause."""
    processes = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


async def measure(
    server: Server, counts: list[int], load: Load, timing: Timing, limits: Limits, rounds: int
) -> list[dict[str, Any]]:
    """Observe bulk and chat together beside each number of processes, `rounds` times in turn."""
    client = Client(server.url, "model")
    await until_ready(client, server, load)
    engine_pid = server.pids[0]
    windows: dict[int, list[Observed]] = {count: [] for count in counts}
    for i in range(rounds):
        for count in counts if i % 2 == 0 else reversed(counts):
            with spinning(count):
                # Each window has prompts of its own, so that none is in the prefix cache.
                window_load = dataclasses.replace(load, round=1000 * i + count)
                windows[count].append(await observe(client, window_load, timing, "both", [engine_pid]))
            server.check()
    return [figures(count, report(windows[count], limits)) for count in counts]


def figures(count: int, found: dict[str, Any]) -> dict[str, Any]:
    """The figures of a number of processes."""
    return {
        "spinning": count,
        "engine_cpu_s_per_s": found["cpu_s"]["server"] / found["window_s"],
        **beside_each_other(found),
        "cost_model_error": found.get("cost_model_error"),
    }


def add_kept(rows: list[dict[str, Any]]) -> None:
    """Add what bulk kept of its share, and what both lanes kept, compared with the first row."""
    first = rows[0]
    for row in rows:
        cpu_share = row["engine_cpu_s_per_s"] / first["engine_cpu_s_per_s"]
        row["kept"] = row["be_tokens_per_s"] / first["be_tokens_per_s"] / cpu_share
        row["both_kept"] = _tokens_per_s(row) / _tokens_per_s(first) / cpu_share


def _tokens_per_s(row: dict[str, Any]) -> float:
    return float(row["be_tokens_per_s"] + row["rt_tokens_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument(
        "--vocab-size", type=int, default=1536, help="prompt tokens are below it (%(default)s)"
    )
    parser.add_argument("--own", default="", metavar="FLAGS", help="flags of the engine")
    parser.add_argument("--spinning", default="0,4,16", help="numbers of processes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=40.0, help="measured seconds each (%(default)s)")
    parser.add_argument("--rt-rate", type=float, default=0.5, help="chats per second (%(default)s)")
    parser.add_argument("--ttft-ms", type=float, default=500.0)
    parser.add_argument("--tpot-ms", type=float, default=100.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    counts = [int(count) for count in options.spinning.split(",")]
    load = Load(token_ids=(FIRST_TEXT_ID, options.vocab_size), rt_rate=options.rt_rate)
    timing = Timing(options.seconds, warm_up_s=10.0, lead_in_s=30.0, drain_s=20.0)
    limits = Limits(options.ttft_ms, options.tpot_ms)
    with own_server(options.model_dir, "model", options.own) as server:
        rows = asyncio.run(measure(server, counts, load, timing, limits, options.rounds))
    add_kept(rows)
    print(
        "processes  bulk tokens/s  engine CPU  kept  both kept  chats in time  TTFT p50/p99 ms  TPOT p50/p99 ms"
    )
    for row in rows:
        rt = row["rt"]
        ttft, tpot = rt["ttft_ms"] or {}, rt["tpot_ms"] or {}
        print(
            f"{row['spinning']:9} {row['be_tokens_per_s']:14.0f} {row['engine_cpu_s_per_s']:11.2f} {row['kept']:5.2f} "
            f"{row['both_kept']:10.2f} "
            f"{rt['attainment'] or 0:14.1%}  {ttft.get('p50')}/{ttft.get('p99')}  {tpot.get('p50')}/{tpot.get('p99')}"
        )
    result = {
        "model": options.model_dir.name,
        "flags": options.own,
        "rt_rate": options.rt_rate,
        "limits": dataclasses.asdict(limits),
        "rows": rows,
    }
    print(write_result(options.out, "busy-machine", result))


if __name__ == "__main__":
    main()
