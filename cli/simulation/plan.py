"""`bros-batch plan`: estimate how many engines a load needs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from cli.failure import Failure
from cli.numbers import POSITIVE, Finite
from cli.output import json_option, note, print_json
from cli.simulation.options import (
    engine_options,
    milliseconds,
    setup_options,
    usage_failure,
)

if TYPE_CHECKING:
    from engine.sim.fleet import FleetPlan, Trial


@click.command()
@click.option("--rt", metavar="WORKLOAD", required=True, help="Workload of the chats.")
@click.option("--rt-rate", type=POSITIVE, required=True, help="Chats per second, over all engines.")
@click.option("--be", metavar="WORKLOAD", required=True, help="Workload of the bulk documents.")
@click.option("--be-tokens-per-day", type=POSITIVE, help="Output tokens that bulk must produce per day.")
@click.option(
    "--be-documents-per-hour", type=POSITIVE, help="Alternatively, documents that bulk must finish per hour."
)
@click.option(
    "--attainment",
    type=Finite(0, 100, min_open=True),
    default=95.0,
    show_default=True,
    help="Percentage of chats that must meet both SLOs.",
)
@click.option(
    "--duration",
    "duration_s",
    type=POSITIVE,
    default=300.0,
    show_default=True,
    help="Virtual seconds per trial.",
)
@engine_options
@json_option
def plan(
    be_tokens_per_day: float | None, be_documents_per_hour: float | None, as_json: bool, **options: Any
) -> None:
    """Estimate how many engines a load needs: engines that serve both lanes, or separate fleets for chat and bulk.

    Each fleet size is tried in simulation. Every engine gets its share of the chats, including bursts, and as much bulk
    as it can process. See `bros-batch simulate --help` for workloads and devices.

    \b
    bros-batch plan --device a100-8b --rt azure-2023-conv --rt-rate 20 --be bros-best-effort --be-tokens-per-day 2e8
    """
    from engine.sim.fleet import Demand, NoFleet, mean_output_tokens, plan_fleet
    from engine.sim.scenario import find_workload, make_setup

    if (be_tokens_per_day is None) == (be_documents_per_hour is None):
        raise click.UsageError(
            "Use either --be-tokens-per-day or --be-documents-per-hour to say how much bulk there is."
        )
    try:
        setup = make_setup(**setup_options(options))
        find_workload(options["rt"])
        output_tokens = mean_output_tokens(options["be"])
    except ValueError as error:
        raise usage_failure(error) from None
    tokens_per_s = (be_tokens_per_day or 0.0) / 86400 + (be_documents_per_hour or 0.0) / 3600 * output_tokens
    demand = Demand(
        rt=options["rt"],
        rt_rate=options["rt_rate"],
        be=options["be"],
        be_tokens_per_s=tokens_per_s,
        attainment=options["attainment"] / 100,
        duration_s=options["duration_s"],
        warmup_s=options["duration_s"] / 3,
        seed=setup.seed,
    )

    def report_trial(kind: str, trial: Trial) -> None:
        if not as_json:
            note(f"Tried {_engines(trial.num_engines)}, {kind}: {_figures(trial, output_tokens)}")

    try:
        found = plan_fleet(setup, demand, report_trial)
    except NoFleet as error:
        raise Failure(f"{error}.") from None
    if as_json:
        print_json(
            {
                "demand": dataclasses.asdict(demand),
                "hybrid": _fleet(found.hybrid),
                "split": {
                    "num_engines": found.num_split,
                    "rt_only": _fleet(found.rt_only),
                    "be_only": _fleet(found.be_only),
                },
            }
        )
    else:
        _print(found, demand.be_tokens_per_s, output_tokens)


def _fleet(trial: Trial) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(trial).items() if value is not None}


def _print(found: FleetPlan, wanted_tokens_per_s: float, output_tokens: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in (
        "FLEET",
        "ENGINES",
        "SLO ATTAINMENT",
        "TTFT p99",
        "TPOT p99",
        "BULK TOKENS/S",
        "DOCUMENTS/H",
    ):
        table.add_column(column, justify="left" if column == "FLEET" else "right")
    for name, trial in (
        ("hybrid", found.hybrid),
        ("split: chat", found.rt_only),
        ("split: bulk", found.be_only),
    ):
        rate = trial.be_tokens_per_s
        table.add_row(
            name,
            str(trial.num_engines),
            "-" if trial.attainment is None else f"{trial.attainment:.1%}",
            milliseconds(trial.ttft_p99_s),
            milliseconds(trial.tpot_p99_s),
            "-" if rate is None else f"{rate:,.0f}",
            "-" if rate is None else f"{rate / output_tokens * 3600:,.0f}",
        )
    Console().print(table)
    saved = found.num_split - found.hybrid.num_engines
    verdict = f"{saved} fewer than" if saved > 0 else f"{-saved} more than" if saved < 0 else "as many as"
    click.echo(
        f"\nHybrid: {_engines(found.hybrid.num_engines)}, {verdict} the {found.num_split} of a split fleet. "
        f"Bulk needs {wanted_tokens_per_s:,.0f} output tokens/s."
    )


def _engines(count: int) -> str:
    return f"{count} engine" + "s" * (count != 1)


def _figures(trial: Trial, output_tokens: float) -> str:
    parts = []
    if trial.attainment is not None:
        parts.append(f"{trial.attainment:.1%} of the SLOs met")
    if trial.be_tokens_per_s is not None:
        documents = trial.be_tokens_per_s / output_tokens * 3600
        parts.append(f"{trial.be_tokens_per_s:,.0f} bulk tokens/s ({documents:,.0f} documents/h)")
    return ", ".join(parts)
