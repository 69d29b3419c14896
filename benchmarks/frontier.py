"""How much does bulk get at each slowdown that chats are allowed (`--rt-slowdown`)?

    python -m benchmarks.frontier --simulate cpu-mini,a100-8b,h200-8b
    python -m benchmarks.frontier --model-dir DIR --own "FLAGS" [--beside serving-vllm.json ...]

The first command simulates devices. The second measures the load of the serving benchmark on servers of its own, one
for each slowdown, in turns on the same machine. `none` is an engine without a slowdown, which holds the times of its
SLO.

The reference is the same engine with the same chats and no bulk, measured in the same run: `TTFT` and `TPOT` are
medians and 99th percentiles of the chats, divided by those of the reference. The row `noise` is the reference again.
`bulk` is the share of the output tokens per second that bulk has alone. `--beside` adds results of `benchmarks.serving`
of other servers, which have their own reference. Writes a JSON file and, if matplotlib is installed, a plot.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result
from benchmarks.serving.__main__ import until_ready
from benchmarks.serving.client import Client
from benchmarks.serving.load import Load
from benchmarks.serving.own_server import Server, own_server
from benchmarks.serving.phase import Observed, Timing, observe
from benchmarks.serving.report import Limits, report
from engine.sim.replay import replay
from engine.sim.report import LaneReport
from engine.sim.scenario import limits_for, make_setup, synthetic_load

PERCENTILES = ("p50", "p99")
# Chats, chats per second, bulk, and virtual seconds.
SIMULATED = {
    "cpu-mini": ("cpu-mini-chat", 2.0, "cpu-mini", 600.0),
    "a100-8b": ("azure-2023-conv", 3.0, "arxiv-summarization-4k", 120.0),
    "h200-8b": ("azure-2023-conv", 6.0, "arxiv-summarization-4k", 120.0),
}


@dataclass(frozen=True, slots=True)
class Times:
    """What chats took in milliseconds, by percentile, and the output tokens per second of bulk."""

    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    be_tokens_per_s: float


def row(name: str, found: Times, idle: Times, alone_tokens_per_s: float) -> dict[str, Any]:
    """The figures of one setting beside the reference."""
    return {
        "setting": name,
        "bulk_share": round(found.be_tokens_per_s / alone_tokens_per_s, 4),
        "ttft_ratio": {p: round(found.ttft_ms[p] / idle.ttft_ms[p], 3) for p in PERCENTILES},
        "tpot_ratio": {p: round(found.tpot_ms[p] / idle.tpot_ms[p], 3) for p in PERCENTILES},
        **dataclasses.asdict(found),
    }


def table(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """The rows of one machine as text."""
    lines = [title, "slowdown        bulk  TTFT p50/p99   TPOT p50/p99   TTFT p99 ms  TPOT p99 ms"]
    for each in rows:
        ttft, tpot = each["ttft_ratio"], each["tpot_ratio"]
        lines.append(
            f"{each['setting']:12} {each['bulk_share']:7.1%}   {ttft['p50']:5.2f} {ttft['p99']:5.2f}    "
            f"{tpot['p50']:5.2f} {tpot['p99']:5.2f}  {each['ttft_ms']['p99']:12.0f} {each['tpot_ms']['p99']:12.1f}"
        )
    return "\n".join(lines)


# Simulated -----------------------------------------------------------------------------------------------


def simulate(device: str, slowdowns: Sequence[float | None]) -> list[dict[str, Any]]:
    """The frontier of a device of the simulator."""
    rt, rate, be, duration_s = SIMULATED[device]

    def run(
        slowdown: float | None = None, *, has_rt: bool = True, has_be: bool = True, seed: int = 0
    ) -> Times:
        setup = make_setup(device, ttft_s=0.5, tpot_s=0.1, rt_slowdown=slowdown, seed=seed)
        load = synthetic_load(
            limits_for(setup, duration_s=duration_s, warmup_s=duration_s / 6),
            rt=rt if has_rt else None,
            rt_rate=rate,
            be=be if has_be else None,
            be_rate=None,
            seed=0,
        )
        found = replay(setup, load)
        return _simulated_times(found.rt, found.be)

    idle, alone = run(has_be=False), run(has_rt=False)
    rows = [row("noise", run(has_be=False, seed=1), idle, alone.be_tokens_per_s)]
    return rows + [row(_name(each), run(each), idle, alone.be_tokens_per_s) for each in slowdowns]


def _simulated_times(rt: LaneReport, be: LaneReport) -> Times:
    def in_ms(values: tuple[float | None, float | None]) -> dict[str, float]:
        return {p: round(1000 * (value or 0.0), 3) for p, value in zip(PERCENTILES, values, strict=True)}

    ttft, tpot = in_ms((rt.ttft.p50_s, rt.ttft.p99_s)), in_ms((rt.tpot.p50_s, rt.tpot.p99_s))
    return Times(ttft, tpot, round(be.output_tokens_per_s, 1))


# Measured ------------------------------------------------------------------------------------------------


async def measure(
    servers: dict[str, Server], model: str, load: Load, timing: Timing, rounds: int
) -> list[dict[str, Any]]:
    """The frontier of this machine: chats alone, bulk alone, and both on the server of each setting, in turns."""
    first = next(iter(servers))
    turns = [(first, "rt", "idle"), *((name, "both", name) for name in servers), (first, "be", "alone")]
    turns.append((first, "rt", "noise"))
    clients = {name: Client(server.url, model) for name, server in servers.items()}
    windows: dict[str, list[Observed]] = {key: [] for _, _, key in turns}
    for i in range(rounds):
        for j, (name, phase, key) in enumerate(turns if i % 2 == 0 else reversed(turns)):
            # Each turn has prompts of its own, so that none is in the prefix cache.
            turn_load = dataclasses.replace(load, round=1000 * i + j)
            windows[key].append(await observe(clients[name], turn_load, timing, phase, servers[name].pids))
            servers[name].check()
    phases = {key: report(observed, Limits()) for key, observed in windows.items()}
    idle, alone_tokens_per_s = _times(phases["idle"]), phases["alone"]["be"]["output_tokens_per_s"]
    return [row(key, _times(phases[key]), idle, alone_tokens_per_s) for key in ("noise", *servers)]


def _times(phase: dict[str, Any]) -> Times:
    rt = phase["rt"]
    return Times(
        {p: rt["ttft_ms"][p] for p in PERCENTILES},
        {p: rt["tpot_ms"][p] for p in PERCENTILES},
        phase["be"]["output_tokens_per_s"] if "be" in phase else 0.0,
    )


def beside(path: Path) -> dict[str, Any]:
    """The row of another server from its result of the serving benchmark."""
    result = json.loads(path.read_text())["result"]
    phases = result["phases"]
    alone_tokens_per_s = phases["be"]["be"]["output_tokens_per_s"]
    return row(result["label"], _times(phases["both"]), _times(phases["rt"]), alone_tokens_per_s)


# Both ----------------------------------------------------------------------------------------------------


def plot(frontiers: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Plot the bulk share over the median and the 99th percentile of the slowdown."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    for i, (key, name) in enumerate((("ttft_ratio", "first token"), ("tpot_ratio", "further tokens"))):
        for j, percentile in enumerate(PERCENTILES):
            axes = figure.add_subplot(2, 2, 2 * i + j + 1)
            for title, rows in frontiers.items():
                points = [(each[key][percentile], each["bulk_share"], each["setting"]) for each in rows]
                axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label=title)
                for x, y, setting in points:
                    axes.annotate(setting, (x, y), fontsize=7, xytext=(4, -8), textcoords="offset points")
            axes.set(title=f"{name}, {percentile}", xlabel="time / time without bulk", ylabel="bulk")
            axes.grid(alpha=0.3)
            axes.legend()
    figure.savefig(path, dpi=110)


def _name(slowdown: float | None) -> str:
    return "none" if slowdown is None else f"{slowdown:g}"


def _slowdowns(text: str) -> list[float | None]:
    try:
        return [None if part == "none" else float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like 0.05,0.5,none") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--simulate", metavar="DEVICES", help=f"any of {', '.join(SIMULATED)}")
    what.add_argument("--model-dir", type=Path, help="measure with this model")
    parser.add_argument("--own", default="", metavar="FLAGS", help="flags of the engines")
    parser.add_argument("--slowdowns", type=_slowdowns, help="list of slowdowns; none: the times of the SLO")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=40.0, help="measured seconds each (%(default)s)")
    parser.add_argument(
        "--lead-in", type=float, default=20.0, help="most seconds of bulk alone (%(default)s)"
    )
    parser.add_argument("--beside", type=Path, nargs="+", default=[], metavar="JSON")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    frontiers: dict[str, list[dict[str, Any]]] = {}
    if options.simulate:
        slowdowns = options.slowdowns or [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, None]
        devices = options.simulate.split(",")
        if unknown := set(devices) - set(SIMULATED):
            parser.error(f"--simulate: unknown: {', '.join(sorted(unknown))}")
        for device in devices:
            frontiers[device] = simulate(device, slowdowns)
            print(table(device, frontiers[device]), flush=True)
    else:
        slowdowns = options.slowdowns or [0.05, 0.2, 0.5, None]
        # Handled like Ctrl-C, so that servers started here stop.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        timing = Timing(options.seconds, warm_up_s=8.0, lead_in_s=options.lead_in, drain_s=15.0)
        with contextlib.ExitStack() as stack:
            servers: dict[str, Server] = {}
            for each in slowdowns:  # one after the other, because an engine measures its steps when it starts
                flags = options.own + ("" if each is None else f" --rt-slowdown {each:g}")
                server = stack.enter_context(own_server(options.model_dir, "model", flags))
                asyncio.run(until_ready(Client(server.url, "model"), server, Load()))
                servers[_name(each)] = server
            rows = asyncio.run(measure(servers, "model", Load(), timing, options.rounds))
        frontiers["measured"] = rows + [beside(path) for path in options.beside]
        print(table("measured", frontiers["measured"]))
    kind = "simulated" if options.simulate else "cpu"
    path = write_result(options.out, f"frontier-{kind}", {"flags": options.own, "frontiers": frontiers})
    print(path)
    with contextlib.suppress(ImportError):
        plot(frontiers, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
