"""What do schemas cost? Bulk that follows one beside bulk that does not, and a neighbour with slow schemas.

    python -m benchmarks.reference_model DIR --vocab-size 150000
    python -m benchmarks.structured --model-dir DIR --vocab-size 150000 [--own=--forced-tokens]

Runs the load of the serving benchmark (64 documents in flight, and chats on a schedule) in turns: without a grammar,
with every document in one schema, and with chats of a neighbour whose schemas take long to compile. The answers of the
schema have no end, so that all variants compute the same number of tokens. Writes a JSON file.

    python -m benchmarks.structured --forced [--documents 300]

Extracts eight fields from generated documents with the demo model, with forced tokens and without, and prints documents
per second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.extraction import extract
from benchmarks.machine import write_result
from benchmarks.serving.__main__ import until_ready
from benchmarks.serving.client import Client
from benchmarks.serving.load import FIRST_TEXT_ID, Load
from benchmarks.serving.own_server import Server, own_server
from benchmarks.serving.phase import Observed, Timing, observe
from benchmarks.serving.report import Limits, beside_each_other, report
from bros_batch.settings import DEMO_MODEL_DIR

SLOW = "schema and slow neighbour"
VARIANTS = ("free", "schema", SLOW)
ROW = {
    "type": "object",
    "properties": {
        "vendor": {"type": "string", "maxLength": 24},
        "date": {"type": "string", "format": "date"},
        "total": {"type": "integer", "minimum": 0, "maximum": 99999},
        "currency": {"enum": ["EUR", "USD", "GBP", "JPY"]},
        "is_paid": {"type": "boolean"},
        "contact": {"type": ["string", "null"], "maxLength": 16},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
        "note": {"type": "string", "maxLength": 40},
    },
    "required": ["vendor", "date", "total", "currency", "is_paid", "contact", "tags", "note"],
    "additionalProperties": False,
}
ENDLESS_ROWS = {"type": "array", "minItems": 100_000, "items": ROW}


def shape(schema: Any) -> dict[str, Any]:
    return {"structured_outputs": {"json": schema}}


def slow_schema(number: int) -> dict[str, Any]:
    """A schema that takes seconds to compile; every number has its own, so none is compiled already."""
    names = (f"{number}-{index}" for index in range(4))
    return {
        "type": "object",
        "properties": {name: {"type": "number", "multipleOf": 123_457 + number} for name in names},
    }


@contextlib.asynccontextmanager
async def slow_neighbour(url: str) -> AsyncIterator[list[float]]:
    """Send chats with slow schemas, one after the other. Yields the seconds that each took."""
    took_s: list[float] = []

    async def send() -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=120) as http:
            for number in itertools.count():
                body = {"model": "model", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
                begun_s = time.perf_counter()
                await http.post(f"{url}/v1/chat/completions", json={**body, **shape(slow_schema(number))})
                took_s.append(time.perf_counter() - begun_s)

    task = asyncio.create_task(send())
    try:
        yield took_s
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def measure(
    server: Server, load: Load, timing: Timing, limits: Limits, variants: list[str], rounds: int
) -> list[dict[str, Any]]:
    """Observe bulk and chat together in each variant, `rounds` times in turn."""
    plain = Client(server.url, "model")
    constrained = Client(server.url, "model", shape(ENDLESS_ROWS))
    await until_ready(plain, server, load)
    windows: dict[str, list[Observed]] = {variant: [] for variant in variants}
    slow_s: list[float] = []
    for i in range(rounds):
        for number, variant in enumerate(variants if i % 2 == 0 else variants[::-1]):
            client = plain if variant == "free" else constrained
            window_load = dataclasses.replace(load, round=10 * i + number)
            async with contextlib.AsyncExitStack() as stack:
                if variant == SLOW:
                    slow_s = await stack.enter_async_context(slow_neighbour(server.url))
                windows[variant].append(await observe(client, window_load, timing, "both", server.pids))
            server.check()
    rows = [figures(variant, report(windows[variant], limits)) for variant in variants]
    for row in rows:
        if row["variant"] == SLOW:
            row["slow_chats_s"] = [round(each, 3) for each in slow_s]
    return rows


def figures(variant: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "variant": variant,
        "cpu_s_per_s": found["cpu_s"]["server"] / found["window_s"],
        **beside_each_other(found),
    }


def measure_forced(num_documents: int, own: str) -> None:
    model_dir = Path(DEMO_MODEL_DIR)
    for flag in ("--forced-tokens", "--no-forced-tokens"):
        with own_server(model_dir, "model", f"{own} {flag}") as server:
            found = asyncio.run(extract(server, "model", num_documents))
        print(f"{flag:18} {found.documents_per_s:8.1f} documents/s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, default=Path(DEMO_MODEL_DIR))
    parser.add_argument(
        "--vocab-size", type=int, default=1536, help="prompt tokens are below it (%(default)s)"
    )
    parser.add_argument("--own", default="", metavar="FLAGS", help="flags of the engine")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="measured seconds each (%(default)s)")
    parser.add_argument(
        "--lead-in", type=float, default=30.0, help="at most so many seconds before each (%(default)s)"
    )
    parser.add_argument("--rt-rate", type=float, default=0.5, help="chats per second (%(default)s)")
    parser.add_argument("--ttft-ms", type=float, default=500.0)
    parser.add_argument("--tpot-ms", type=float, default=100.0)
    parser.add_argument("--forced", action="store_true", help="measure what forced tokens bring")
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.forced:
        measure_forced(options.documents, options.own)
        return
    load = Load(token_ids=(FIRST_TEXT_ID, options.vocab_size), rt_rate=options.rt_rate)
    timing = Timing(options.seconds, warm_up_s=5.0, lead_in_s=options.lead_in, drain_s=10.0)
    limits = Limits(options.ttft_ms, options.tpot_ms)
    with own_server(options.model_dir, "model", options.own) as server:
        rows = asyncio.run(measure(server, load, timing, limits, options.variants, options.rounds))
    print(
        "variant                     bulk tokens/s  of first  chats in time  TTFT p50/p99 ms  TPOT p50/p99 ms"
    )
    for row in rows:
        rt = row["rt"]
        ttft, tpot = rt["ttft_ms"] or {}, rt["tpot_ms"] or {}
        share = row["be_tokens_per_s"] / rows[0]["be_tokens_per_s"]
        print(
            f"{row['variant']:26} {row['be_tokens_per_s']:14.0f} {share:9.1%} {rt['attainment'] or 0:14.1%}  "
            f"{ttft.get('p50')}/{ttft.get('p99')}  {tpot.get('p50')}/{tpot.get('p99')}  {row['be_errors'] or ''}"
        )
        if row["variant"] == SLOW:
            print("  slow chats took", row["slow_chats_s"], "s")
    result = {
        "model": options.model_dir.name,
        "vocab_size": options.vocab_size,
        "flags": options.own,
        "rt_rate": options.rt_rate,
        "limits": dataclasses.asdict(limits),
        "rows": rows,
    }
    print(write_result(options.out, "structured", result))


if __name__ == "__main__":
    main()
