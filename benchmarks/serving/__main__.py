"""How fast are chats alone, bulk alone, and both at once? For any server with OpenAI's completions API.

    python -m benchmarks.serving --url http://127.0.0.1:8000 --model NAME --label bros [--phases rt,be,both]
    python -m benchmarks.serving --own "--max-num-batched-tokens 256" --model-dir DIR --label bros
    python -m benchmarks.serving --compare A.json B.json

`--rounds 5` goes through the phases five times, every second time backwards, and pools what it sees: a shared machine
drifts by more within minutes than a policy costs.

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

READY_TIMEOUT_S = 300.0  # a server may compile first


async def measure(
    server: Server,
    model: str,
    phases: Sequence[str],
    load: Load,
    timing: Timing,
    limits: Limits,
    rounds: int = 1,
) -> dict[str, Any]:
    """Each phase in turn, once the server answers. RuntimeError when it does not."""
    client = Client(server.url, model)
    await until_ready(client, server, load)
    windows: dict[str, list[Observed]] = {phase: [] for phase in phases}
    for i in range(rounds):
        round_load = dataclasses.replace(load, round=i)
        # Back and forth, so that no phase is always the later one on a machine that grows slower.
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
    """Until a completion succeeds. RuntimeError with what the server last said."""
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
        message = f"{client.url} serves no completion of '{client.model}': {answer.error}"
        raise RuntimeError(message) from None


async def server_version(url: str) -> str | None:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        with contextlib.suppress(httpx.TransportError, ValueError):
            return str((await http.get(f"{url}/version")).json().get("version"))
    return None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--url", help="a server that runs")
    what.add_argument(
        "--own", metavar="FLAGS", help="start our own for this run, its engine with these flags"
    )
    what.add_argument("--compare", nargs="+", type=Path, metavar="JSON", help="results side by side")
    parser.add_argument(
        "--server-pid",
        type=int,
        nargs="*",
        default=(),
        help="with --url: the server's first process, to tell its CPU time from that of others",
    )
    parser.add_argument("--model-dir", type=Path, help="with --own: what it serves")
    parser.add_argument("--model", default="cpu-mini", help="the name it is served under (%(default)s)")
    parser.add_argument("--label", default="bros", help="names the result (%(default)s)")
    parser.add_argument("--phases", default="rt,be,both", help="which and in what order (%(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="how often (%(default)s)")
    load, timing, limits = Load(), Timing(), Limits()
    for option, default, about in (
        ("--seconds", timing.window_s, "a phase's window"),
        ("--warm-up", timing.warm_up_s, "seconds before it"),
        ("--lead-in", timing.lead_in_s, "seconds that bulk gets at most before those, to reach its stride"),
        (
            "--drain",
            timing.drain_s,
            "seconds that open chats, and then documents, get at most after the window",
        ),
        ("--rt-rate", load.rt_rate, "chats a second"),
        ("--ttft-ms", limits.ttft_ms, "limit of the time to first token"),
        ("--tpot-ms", limits.tpot_ms, "limit of the time per token after it"),
    ):
        parser.add_argument(option, type=float, default=default, help=f"{about} (%(default)s)")
    parser.add_argument(
        "--be-in-flight", type=int, default=load.be_in_flight, help="documents open at once (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=load.seed, help="of lengths, times and tokens (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.own is not None and options.model_dir is None:
        parser.error("--own needs --model-dir")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if unknown := set(options.phases.split(",")) - set(LANES):
        parser.error(f"--phases: there is no {', '.join(sorted(unknown))}; there are {', '.join(LANES)}")
    return options


def main() -> None:
    options = parse_args()
    if options.compare:
        print(table([json.loads(path.read_text())["result"] for path in options.compare]))
        return
    load = Load(seed=options.seed, rt_rate=options.rt_rate, be_in_flight=options.be_in_flight)
    timing = Timing(options.seconds, options.warm_up, options.lead_in, options.drain)
    limits = Limits(options.ttft_ms, options.tpot_ms)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: servers of its own end with it
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
        print(f"No picture: {error}. Install the extra: pip install -e '.[benchmarks]'")
        return
    print(plot([result], path.with_suffix(".png")))


if __name__ == "__main__":
    main()
