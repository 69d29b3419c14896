"""`bros-batch simulate`: replay a load on a simulated engine in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.failure import Failure
from cli.numbers import POSITIVE, Finite
from cli.output import json_option, note, print_json
from cli.simulation.options import engine_options, setup_options, usage_failure

if TYPE_CHECKING:
    from engine.sim.replay import Load, Setup
    from engine.sim.report import LaneReport, Latency, Report

DEFAULT_DURATION_S = 300.0
POLICIES = ("bros", "priority", "fcfs")


@click.command()
@click.option("--rt", metavar="WORKLOAD", help="Workload of the chats.")
@click.option(
    "--rt-rate", type=POSITIVE, show_default="the workload's", help="Average number of chats per second."
)
@click.option("--be", metavar="WORKLOAD", help="Workload of the bulk documents.")
@click.option(
    "--be-in-flight",
    type=click.IntRange(1),
    show_default="what fits, plus 32",
    help="Number of documents that the engine holds at once.",
)
@click.option(
    "--be-rate",
    type=POSITIVE,
    show_default="an endless backlog",
    help="Average number of documents that arrive per second.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Replay the requests in this JSONL file instead.",
)
@click.option("--requests", "num_requests", type=click.IntRange(1), help="End after this many requests.")
@click.option(
    "--duration", "duration_s", type=POSITIVE, show_default="300", help="End after this many virtual seconds."
)
@click.option(
    "--warmup",
    "warmup_s",
    type=Finite(0),
    default=0.0,
    help="Virtual seconds at the start that are not measured.",
)
@click.option(
    "--max-open-rt",
    type=click.IntRange(0),
    default=512,
    show_default=True,
    help="Number of open chats above which new ones are rejected; 0 means no limit.",
)
@click.option(
    "--policy",
    "policies",
    type=click.Choice(POLICIES),
    multiple=True,
    show_default="all three",
    help="Scheduling policy; can be repeated.",
)
@engine_options
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a plot to this PNG file.",
)
@json_option
def simulate(policies: tuple[str, ...], plot_path: Path | None, as_json: bool, **options: Any) -> None:
    """Simulate an engine under a load, in virtual time, and compare scheduling policies.

    The simulation runs the engine's own scheduler and KV memory management; only the device is a formula.

    Workloads: azure-2023-conv, azure-2023-code, sharegpt-8k, arxiv-summarization-4k, bros-best-effort, cpu-mini,
    cpu-mini-chat.

    \b
    bros-batch simulate --rt cpu-mini-chat --rt-rate 2 --be cpu-mini
    bros-batch simulate --device a100-8b --rt azure-2023-conv --be bros-best-effort --duration 600
    """
    if plot_path is not None:
        from engine.sim.plot import require_matplotlib

        try:
            require_matplotlib()
        except ImportError as error:
            raise usage_failure(error) from None
    try:
        prepared = [_prepare(policy, dict(options)) for policy in dict.fromkeys(policies or POLICIES)]
    except (ValueError, OSError) as error:
        raise usage_failure(_with_file_name(error)) from None
    reports, replays = [], {}
    for setup, load in prepared:
        report, outcomes = _run(setup, load, quiet=as_json)
        reports.append(report)
        replays[report.policy.value] = outcomes
    if plot_path is not None:
        from engine.sim.plot import plot

        try:
            plot(plot_path, replays, prepared[0][0].slo)
        except ValueError as error:
            raise usage_failure(error) from None
        note(f"Plot written to {plot_path}")
    if as_json:
        print_json({"options": _plain(options), "policies": [report.as_json() for report in reports]})
    else:
        _print_table(reports)


def _prepare(policy: str, options: dict[str, Any]) -> tuple[Setup, Load]:
    from engine.sim.scenario import limits_for, make_setup, synthetic_load, trace_load

    setup = make_setup(policy=policy, **setup_options(options))
    trace: Path | None = options.pop("trace")
    if trace is None and options["rt"] is None and options["be"] is None:
        raise ValueError("there is no load; use --rt, --be or --trace")
    if trace is not None and (options["rt"] is not None or options["be"] is not None):
        raise ValueError("a trace already defines the load; use either --trace, or --rt and --be")
    if options["be_rate"] is not None and options["be_in_flight"] is not None:
        raise ValueError("--be-rate and --be-in-flight exclude each other; use only one of them")
    for lane in ("rt", "be"):
        if options[f"{lane}_rate"] is not None and options[lane] is None:
            raise ValueError(f"--{lane}-rate needs a workload; use --{lane} too")
    if options["num_requests"] is None and options["duration_s"] is None and trace is None:
        options["duration_s"] = DEFAULT_DURATION_S
    limits = limits_for(
        setup,
        be_in_flight=options["be_in_flight"],
        max_open_rt=options["max_open_rt"] or None,
        num_requests=options["num_requests"],
        duration_s=options["duration_s"],
        warmup_s=options["warmup_s"],
    )
    if trace is not None:
        return trace_load(trace, setup, limits)
    sources = {name: options[name] for name in ("rt", "rt_rate", "be", "be_rate")}
    return setup, synthetic_load(limits, **sources, seed=setup.seed)


def _run(setup: Setup, load: Load, *, quiet: bool) -> tuple[Report, Any]:
    from rich.console import Console

    from engine.sim.feed import Stuck
    from engine.sim.replay import Replay

    replay = Replay(setup, load)
    try:
        with Console(stderr=True, quiet=quiet).status(f"Simulating {setup.policy.value}"):
            report = replay.run()
    except Stuck as error:
        raise Failure(f"{setup.policy.value}: {error}.") from None
    return report, replay.feed.outcomes


def _with_file_name(error: ValueError | OSError) -> Exception:
    """Replace an OSError by an error that says only the file and the reason."""
    if isinstance(error, OSError) and error.strerror:
        return ValueError(f"{error.filename}: {error.strerror}")
    return error


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def _print_table(reports: list[Report]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for report in reports:
        table.add_column(report.policy.value, justify="right")
    for title, cells in _rows(reports):
        table.add_row(title, *cells)
    Console().print(table)
    if any(report.stalled_s for report in reports):
        note("The engine had work at some point but planned none. This is a bug; please report it.")


def _rows(reports: list[Report]) -> Iterator[tuple[str, list[str]]]:
    """Yield the title and cells of each table row that has something to show."""
    if any(report.rt.num_arrived for report in reports):
        chats = [report.rt for report in reports]
        yield "[bold]chat (RT)[/]", []
        yield "  SLO attainment", [_share(chat.attainment) for chat in chats]
        yield from _latencies(chats)
        yield "  requests/s", [f"{chat.requests_per_s:,.2f}" for chat in chats]
        yield from _losses(chats)
    if any(report.be.num_arrived for report in reports):
        bulk = [report.be for report in reports]
        yield "[bold]bulk (BE)[/]", []
        yield "  output tokens/s", [f"{lane.output_tokens_per_s:,.0f}" for lane in bulk]
        yield "  documents/h", [f"{lane.requests_per_s * 3600:,.0f}" for lane in bulk]
        yield from _latencies(bulk)
        yield from _losses(bulk)
    yield "[bold]engine[/]", []
    yield "  total tokens/s", [f"{report.tokens_per_s:,.0f}" for report in reports]
    yield "  virtual time", [f"{report.virtual_s:,.0f} s" for report in reports]
    yield "  steps", [f"{report.num_steps:,}" for report in reports]
    if any(report.preemptions for report in reports):
        yield "  preemptions", [f"{report.preemptions:,}" for report in reports]
        yield "  truncated tokens", [f"{report.truncated_tokens:,}" for report in reports]
        for how, title in (
            ("copy", "restored by copy"),
            ("recompute", "recomputed"),
            ("prefix", "from prefix cache"),
        ):
            yield f"  {title}", [f"{report.restored_tokens[how]:,}" for report in reports]


def _latencies(lanes: list[LaneReport]) -> Iterator[tuple[str, list[str]]]:
    yield "  TTFT s, p50 90 99", [_percentiles(lane.ttft, 1) for lane in lanes]
    yield "  TPOT ms, p50 90 99", [_percentiles(lane.tpot, 1000) for lane in lanes]


def _losses(lanes: list[LaneReport]) -> Iterator[tuple[str, list[str]]]:
    for title, counts in (
        ("rejected", [lane.num_rejected for lane in lanes]),
        ("failed", [lane.num_failed for lane in lanes]),
        ("unfinished", [lane.num_unfinished for lane in lanes]),
    ):
        if any(counts):
            yield f"  {title}", [f"{count:,}" for count in counts]


def _share(attainment: float | None) -> str:
    return "-" if attainment is None else f"{attainment:.1%}"


def _percentiles(latency: Latency, scale: float) -> str:
    values = [value for value in (latency.p50_s, latency.p90_s, latency.p99_s) if value is not None]
    places = 3 if scale == 1 and max(values, default=0.0) < 10 else 1
    return " ".join(f"{value * scale:.{places}f}" for value in values) or "-"
