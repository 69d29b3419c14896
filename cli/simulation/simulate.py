"""`bros-batch simulate`: a load on an engine that does not exist, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.failure import Failure
from cli.output import json_option, note, print_json
from cli.simulation.options import POSITIVE, Finite, engine_options, setup_options, wrong_use

if TYPE_CHECKING:
    from engine.sim.replay import Load, Setup
    from engine.sim.report import LaneReport, Latency, Report

DEFAULT_DURATION_S = 300.0
POLICIES = ("bros", "priority", "fcfs")


@click.command()
@click.option("--rt", metavar="WORKLOAD", help="Chats like those of this trace.")
@click.option("--rt-rate", type=POSITIVE, help="Chats a second, on average  [the trace's]")
@click.option("--be", metavar="WORKLOAD", help="Documents like those of this trace.")
@click.option("--be-in-flight", type=click.IntRange(1), help="Documents in hand at once  [what fits, and 32]")
@click.option("--be-rate", type=POSITIVE, help="Documents a second, on average  [a backlog without end]")
@click.option("--trace", type=click.Path(path_type=Path, dir_okay=False), help="Replay a file of JSON lines.")
@click.option("--requests", "num_requests", type=click.IntRange(1), help="End after so many.")
@click.option("--duration", "duration_s", type=POSITIVE, help="End after so many virtual seconds  [300]")
@click.option("--warmup", "warmup_s", type=Finite(0), default=0.0, help="Virtual seconds that do not count.")
@click.option(
    "--max-open-rt", type=click.IntRange(0), default=512, show_default=True, help="0 refuses no chat."
)
@click.option(
    "--policy", "policies", type=click.Choice(POLICIES), multiple=True, help="May be repeated  [all three]"
)
@engine_options
@click.option("--plot", "plot_path", type=click.Path(path_type=Path, dir_okay=False), help="Draw a PNG.")
@json_option
def simulate(policies: tuple[str, ...], plot_path: Path | None, as_json: bool, **options: Any) -> None:
    """Replay a load on a simulated engine, in virtual time, and compare policies.

    The scheduler and the KV bookkeeping are the engine's own; only the device is a formula. Workloads: azure-2023-conv,
    azure-2023-code, sharegpt-8k, arxiv-summarization-4k, bros-best-effort, cpu-mini, cpu-mini-chat.

    \b
    bros-batch simulate --rt cpu-mini-chat --rt-rate 2 --be cpu-mini
    bros-batch simulate --device a100-8b --rt azure-2023-conv --be bros-best-effort --duration 600
    """
    if plot_path is not None:
        from engine.sim.plot import require_matplotlib

        try:
            require_matplotlib()
        except ImportError as error:
            raise wrong_use(error) from None
    try:
        prepared = [_prepare(policy, dict(options)) for policy in dict.fromkeys(policies or POLICIES)]
    except (ValueError, OSError) as error:
        raise wrong_use(_explained(error)) from None
    reports, replays = [], {}
    for setup, load in prepared:
        report, statistics = _run(setup, load, quiet=as_json)
        reports.append(report)
        replays[report.policy.value] = statistics
    if plot_path is not None:
        from engine.sim.plot import plot

        try:
            plot(plot_path, replays, prepared[0][0].slo)
        except ValueError as error:
            raise wrong_use(error) from None
        note(f"plotted in {plot_path}")
    if as_json:
        print_json({"options": _plain(options), "policies": [report.as_json() for report in reports]})
    else:
        _print_table(reports)


def _prepare(policy: str, options: dict[str, Any]) -> tuple[Setup, Load]:
    from engine.sim.scenario import limits_for, make_setup, synthetic_load, trace_load

    setup = make_setup(policy=policy, **setup_options(options))
    trace: Path | None = options.pop("trace")
    if trace is None and options["rt"] is None and options["be"] is None:
        raise ValueError("there is no load; give --rt, --be or --trace")
    if trace is not None and (options["rt"] is not None or options["be"] is not None):
        raise ValueError("a trace says what arrives; give either --trace or --rt and --be")
    if options["be_rate"] is not None and options["be_in_flight"] is not None:
        raise ValueError("documents either arrive or are always in hand; give --be-rate or --be-in-flight")
    for lane in ("rt", "be"):
        if options[f"{lane}_rate"] is not None and options[lane] is None:
            raise ValueError(f"--{lane}-rate is the rate of a workload; give --{lane} too")
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
        with Console(stderr=True, quiet=quiet).status(f"simulating {setup.policy.value}"):
            report = replay.run()
    except Stuck as error:
        raise Failure(f"{setup.policy.value}: {error}.") from None
    return report, replay.feed.outcomes


def _explained(error: ValueError | OSError) -> Exception:
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
        note("There was a time when the engine had work and planned none; please report this.")


def _rows(reports: list[Report]) -> Iterator[tuple[str, list[str]]]:
    """Those lines of the table that have something to say."""
    if any(report.rt.num_arrived for report in reports):
        chats = [report.rt for report in reports]
        yield "[bold]chat (RT)[/]", []
        yield "  promises kept", [_share(chat.attainment) for chat in chats]
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
    yield "  all tokens/s", [f"{report.tokens_per_s:,.0f}" for report in reports]
    yield "  virtual time", [f"{report.virtual_s:,.0f} s" for report in reports]
    yield "  steps", [f"{report.num_steps:,}" for report in reports]
    if any(report.preemptions for report in reports):
        yield "  preemptions", [f"{report.preemptions:,}" for report in reports]
        yield "  truncated tokens", [f"{report.truncated_tokens:,}" for report in reports]
        for how, title in (
            ("copy", "copied back"),
            ("recompute", "computed again"),
            ("prefix", "found again"),
        ):
            yield f"  {title}", [f"{report.restored_tokens[how]:,}" for report in reports]


def _latencies(lanes: list[LaneReport]) -> Iterator[tuple[str, list[str]]]:
    yield "  TTFT s, p50 90 99", [_percentiles(lane.ttft, 1) for lane in lanes]
    yield "  TPOT ms, p50 90 99", [_percentiles(lane.tpot, 1000) for lane in lanes]


def _losses(lanes: list[LaneReport]) -> Iterator[tuple[str, list[str]]]:
    for title, counts in (
        ("refused", [lane.num_rejected for lane in lanes]),
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
