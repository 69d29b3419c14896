"""Options shared by `simulate` and `plan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli.failure import USAGE_ERROR, Failure
from cli.numbers import POSITIVE, Finite

F = TypeVar("F", bound=Callable[..., Any])


def engine_options(command: F) -> F:
    """Add the options that describe the simulated engine; see `setup_options` for their values."""
    for option in reversed(
        (
            click.option(
                "--device",
                default="cpu-mini",
                show_default=True,
                metavar="DEVICE",
                help="Device: cpu-mini, a100-8b, h200-8b, or coefficients such as step_s=0.006,token_s=0.0003.",
            ),
            click.option(
                "--kv-tokens",
                type=click.IntRange(1),
                show_default="the device's",
                help="KV memory, in tokens.",
            ),
            click.option(
                "--max-num-seqs",
                type=click.IntRange(2),
                show_default="the device's",
                help="Maximum number of requests in one step.",
            ),
            click.option(
                "--max-num-batched-tokens",
                type=click.IntRange(1),
                show_default="the device's",
                help="Maximum number of tokens in one step.",
            ),
            click.option(
                "--ttft-ms",
                type=POSITIVE,
                default=500.0,
                show_default=True,
                help="SLO for the time to first token (TTFT), in milliseconds.",
            ),
            click.option(
                "--tpot-ms",
                type=POSITIVE,
                default=100.0,
                show_default=True,
                help="SLO for the time per output token (TPOT), in milliseconds.",
            ),
            click.option(
                "--rt-slowdown",
                type=Finite(0.001, 100),
                show_default="the times of the SLO",
                help="How much slower bulk may make chats: 0.05 means 5%.",
            ),
            click.option(
                "--be-share",
                type=Finite(0, 1),
                default=0.05,
                show_default=True,
                help="Share of all tokens that is guaranteed to bulk.",
            ),
            click.option(
                "--noise",
                type=Finite(0, 1),
                default=0.05,
                show_default=True,
                help="Variation of equal steps: standard deviation divided by mean.",
            ),
            click.option(
                "--slowdown",
                metavar="FACTOR@FROM[-UNTIL]",
                help="Steps take FACTOR times as long from virtual second FROM on, for example 3@60 or 3@60-120.",
            ),
            click.option(
                "--seed",
                type=int,
                default=0,
                show_default=True,
                help="Seed; the same seed gives the same result.",
            ),
        )
    ):
        command = option(command)
    return command


def setup_options(options: dict[str, Any]) -> dict[str, Any]:
    """Move the values of `engine_options` out of `options`, as arguments of `engine.sim.scenario.make_setup`."""
    names = (
        "device",
        "kv_tokens",
        "max_num_seqs",
        "max_num_batched_tokens",
        "rt_slowdown",
        "be_share",
        "noise",
        "slowdown",
        "seed",
    )
    taken = {name: options.pop(name) for name in names}
    return taken | {name: options.pop(f"{name[:-2]}_ms") / 1000 for name in ("ttft_s", "tpot_s")}


def usage_failure(error: Exception) -> Failure:
    """Turn an error about the options or the trace into a usage failure."""
    sentence = str(error).rstrip(".")
    return Failure(f"{sentence}.", USAGE_ERROR)


def milliseconds(seconds: float | None) -> str:
    """Format a time as `12.3 ms`, `456 ms` or `7.89 s`."""
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
