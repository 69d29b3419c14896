"""How fast are chat alone, bulk alone, and both together? Measures any server with OpenAI's completions API.

    python -m benchmarks.serving --url http://127.0.0.1:8000 --model NAME --label bros [--phases rt,be,both]
    python -m benchmarks.serving --own "--max-num-batched-tokens 256" --model-dir DIR --label bros
    python -m benchmarks.serving --compare A.json B.json

`--rounds 5` runs the phases five times, in reverse order every second time, and pools the observations, because the
speed of a shared machine varies more within minutes than policies differ.

The load is in `load.py`, the phases are in `phase.py`; every server gets the same requests at the same times. A chat
meets its SLO if its first token arrives within `--ttft-ms` of its scheduled time and its further tokens are at most
`--tpot-ms` apart on average. Writes a JSON file and a plot. `benchmarks/peers.md` says how to run other servers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import uvloop

from benchmarks.machine import write_result
from benchmarks.serving.client import Answer, Client
from benchmarks.serving.load import Ask, Load
from benchmarks.serving.own_server import Server, own_server
from benchmarks.serving.phase import LANES, Observed, Timing, observe
from benchmarks.serving.report import Limits, report, table

READY_TIMEOUT_S = 300.0  # a server may have to compile kernels first


async def measure(
    server: Server,
    model: str,
    phases: Sequence[str],
    load: Load,
    timing: Timing,
    limits: Limits,
    rounds: int = 1,
) -> dict[str, Any]:
    """Run the phases once the server answers, and return the result. Raises RuntimeError if it does not answer."""
    client = Client(server.url, model)
    await until_ready(client, server, load)
    windows: dict[str, list[Observed]] = {phase: [] for phase in phases}
    for i in range(rounds):
        round_load = dataclasses.replace(load, round=i)
        # Alternate the order, so that no phase is always the later one on a machine that becomes slower.
        for phase in phases if i % 2 == 0 else reversed(phases):
            windows[phase].append(await observe(client, round_load, timing, phase, server.pids))
            server.check()
    return {
        "model": model,
        "server": await server_version(client.url),
        "load": dataclasses.asdict(load),
        "timing": dataclasses.asdict(timing),
        "limits": dataclasses.asdict(limits),
        "phases": {phase: report(observed, limits) for phase, observed in windows.items()},
    }


async def until_ready(client: Client, server: Server, load: Load) -> None:
    """Wait until a completion succeeds. Raises RuntimeError with the last error if none does in time."""
    answer = Answer(Ask([load.token_ids[0]], 1), time.perf_counter())
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while True:
                await client.complete(answer)
                if answer.error is None:
                    return
                server.check()
                await asyncio.sleep(0.2)
    except TimeoutError:
        message = f"{client.url} does not complete requests for '{client.model}': {answer.error}"
        raise RuntimeError(message) from None


async def server_version(url: str) -> str | None:
    """Return the version that the server reports, or None."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        with contextlib.suppress(httpx.TransportError, ValueError):
            return str((await http.get(f"{url}/version")).json().get("version"))
    return None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--url", help="URL of a running server")
    what.add_argument(
        "--own",
        metavar="FLAGS",
        help="start a bros-batch server for this run, with these flags for its engine",
    )
    what.add_argument("--compare", nargs="+", type=Path, metavar="JSON", help="print results side by side")
    parser.add_argument(
        "--server-pid",
        type=int,
        nargs="*",
        default=(),
        help="with --url: process ids of the server, to separate its CPU time from that of others",
    )
    parser.add_argument("--model-dir", type=Path, help="with --own: directory of the model")
    parser.add_argument("--model", default="cpu-mini", help="name of the served model (%(default)s)")
    parser.add_argument("--label", default="bros", help="name of the result (%(default)s)")
    parser.add_argument("--phases", default="rt,be,both", help="phases, in this order (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=1, help="number of times to run the phases (%(default)s)"
    )
    load, timing, limits = Load(), Timing(), Limits()
    for option, default, about in (
        ("--seconds", timing.window_s, "seconds that are measured per phase"),
        ("--warm-up", timing.warm_up_s, "seconds of chat before the window"),
        ("--lead-in", timing.lead_in_s, "maximum seconds of bulk alone before that, to reach a steady state"),
        (
            "--drain",
            timing.drain_s,
            "maximum seconds to wait for open chats, and then documents, after the window",
        ),
        ("--rt-rate", load.rt_rate, "chats per second"),
        ("--ttft-ms", limits.ttft_ms, "SLO for the time to first token, in ms"),
        ("--tpot-ms", limits.tpot_ms, "SLO for the time per output token, in ms"),
    ):
        parser.add_argument(option, type=float, default=default, help=f"{about} (%(default)s)")
    parser.add_argument(
        "--be-in-flight", type=int, default=load.be_in_flight, help="concurrent documents (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=load.seed, help="seed of lengths, times and tokens (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.own is not None and options.model_dir is None:
        parser.error("--own needs --model-dir")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if unknown := set(options.phases.split(",")) - set(LANES):
        parser.error(f"--phases: unknown: {', '.join(sorted(unknown))}; choose from {', '.join(LANES)}")
    return options


def main() -> None:
    options = parse_args()
    if options.compare:
        print(table([json.loads(path.read_text())["result"] for path in options.compare]))
        return
    load = Load(seed=options.seed, rt_rate=options.rt_rate, be_in_flight=options.be_in_flight)
    timing = Timing(options.seconds, options.warm_up, options.lead_in, options.drain)
    limits = Limits(options.ttft_ms, options.tpot_ms)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # handle it like Ctrl-C, so that servers started here stop
    with contextlib.ExitStack() as stack:
        if options.own is None:
            server = Server(options.url.rstrip("/"), options.server_pid)
        else:
            server = stack.enter_context(own_server(options.model_dir, options.model, options.own))
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        phases = options.phases.split(",")
        result = runner.run(measure(server, options.model, phases, load, timing, limits, options.rounds))
    result = {"label": options.label, "own_flags": options.own, **result}
    print(table([result]))
    path = write_result(options.out, f"serving-{options.label}", result)
    print(path)
    try:
        from benchmarks.serving.plot import plot
    except ImportError as error:
        print(f"No plot: {error}. Install the extra: pip install -e '.[benchmarks]'")
        return
    print(plot([result], path.with_suffix(".png")))


if __name__ == "__main__":
    main()
