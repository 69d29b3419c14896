"""Options of the commands that simulate an engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli.failure import USED_WRONGLY, Failure

F = TypeVar("F", bound=Callable[..., Any])


class Finite(click.FloatRange):
    """A range that neither inf nor nan is in; comparisons alone let them through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no number that can be simulated.", param, ctx)
        return number


POSITIVE = Finite(0, min_open=True)


def engine_options(command: F) -> F:
    """The engine's, as keyword arguments of `engine.sim.scenario.make_setup`; SLOs in milliseconds."""
    for option in reversed(
        (
            click.option(
                "--device",
                default="cpu-mini",
                show_default=True,
                metavar="DEVICE",
                help="cpu-mini, a100-8b, h200-8b, or coefficients: step_s=0.006,token_s=0.0003,...",
            ),
            click.option("--kv-tokens", type=click.IntRange(1), help="KV memory, in tokens  [the device's]"),
            click.option(
                "--max-num-seqs", type=click.IntRange(2), help="Requests computed at once  [the device's]"
            ),
            click.option(
                "--max-num-batched-tokens",
                type=click.IntRange(1),
                help="Tokens computed in a step  [the device's]",
            ),
            click.option(
                "--ttft-ms", type=POSITIVE, default=500.0, show_default=True, help="Promise: first token."
            ),
            click.option(
                "--tpot-ms", type=POSITIVE, default=100.0, show_default=True, help="Promise: each next token."
            ),
            click.option(
                "--be-share",
                type=Finite(0, 1),
                default=0.05,
                show_default=True,
                help="Share of all tokens that bulk gets whatever chat needs.",
            ),
            click.option(
                "--noise",
                type=Finite(0, 1),
                default=0.05,
                show_default=True,
                help="How much equal steps differ: standard deviation over mean.",
            ),
            click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same result."),
        )
    ):
        command = option(command)
    return command


def setup_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `engine_options`, taken out of a command's options."""
    names = ("device", "kv_tokens", "max_num_seqs", "max_num_batched_tokens", "be_share", "noise", "seed")
    taken = {name: options.pop(name) for name in names}
    return taken | {name: options.pop(f"{name[:-2]}_ms") / 1000 for name in ("ttft_s", "tpot_s")}


def wrong_use(error: Exception) -> Failure:
    """What the person asked for cannot be simulated."""
    sentence = str(error).rstrip(".")
    return Failure(f"{sentence}.", USED_WRONGLY)


def milliseconds(seconds: float | None) -> str:
    """`12.3 ms`, `456 ms`, `7.89 s`."""
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
