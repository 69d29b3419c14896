"""`bros-batch up`: run all services on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from bros_batch.client.server_url import server_url
from cli.failure import Failure
from cli.numbers import Finite
from cli.output import program
from cli.settings_options import load_settings, settings_options

if TYPE_CHECKING:
    from bros_batch.up.lock import UpState

COLORS = {
    "redis": "red",
    "engine": "green",
    "worker": "yellow",
    "beat": "magenta",
    "web": "blue",
    "up": "cyan",
}


@click.command(context_settings={"ignore_unknown_options": False})
@settings_options(
    "model",
    "served_model_name",
    "model_aliases",
    "data_dir",
    "host",
    "port",
    "api_key",
    "insecure",
    "allowed_origins",
    "max_model_len",
    "default_max_tokens",
    "generation_config",
    "tool_call_parser",
    "reasoning_parser",
    "embeddings",
    "strict",
)
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Number of worker processes."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), show_default="auto", help="Device to compute on."
)
@click.option("--dtype", show_default="auto", help="Data type: auto, float32, bfloat16 or float16.")
@click.option("--max-num-seqs", type=click.IntRange(1), help="Maximum number of requests in one step.")
@click.option(
    "--gpu-memory-utilization",
    type=Finite(0, 1),
    show_default="0.9",
    help="Fraction of the GPU memory to use.",
)
@click.option(
    "--rt-slowdown",
    type=Finite(0.001, 100),
    show_default="the times of the SLO",
    help="How much slower bulk may make chats: 0.05 means 5%.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the full log of every service.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object with the URL once everything is ready."
)
@click.argument("engine_arguments", nargs=-1, type=click.UNPROCESSED)
def up(
    workers: int,
    device: str | None,
    dtype: str | None,
    max_num_seqs: int | None,
    gpu_memory_utilization: float | None,
    rt_slowdown: float | None,
    verbose: bool,
    as_json: bool,
    engine_arguments: tuple[str, ...],
    **flags: Any,
) -> None:
    """Run all services on this machine until Ctrl-C.

    Ctrl-C lets running work finish; a second Ctrl-C stops everything immediately. ENGINE_ARGUMENTS after -- are passed
    to the engine.
    """
    from bros_batch.up.console import unblocked_output
    from bros_batch.up.run import run_up
    from bros_batch.up.supervisor import UpOptions

    settings = load_settings(**flags)
    engine_flags = {
        "--device": device,
        "--dtype": dtype,
        "--max-num-seqs": max_num_seqs,
        "--gpu-memory-utilization": gpu_memory_utilization,
        "--rt-slowdown": rt_slowdown,
    }
    given = [part for flag, value in engine_flags.items() if value is not None for part in (flag, str(value))]
    options = UpOptions(workers=workers, engine_args=(*given, *engine_arguments), verbose=verbose)
    with unblocked_output():
        code = run_up(settings, options, say, _print_json if as_json else _print_welcome)
    if code:
        raise Failure("", code)


def say(source: str, message: str) -> None:
    """Print a message of a service to stderr, with a colored prefix on a terminal."""
    colored = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    prefix = click.style(f"{source:>6} |", fg=COLORS.get(source)) if colored else f"{source:>6} |"
    for line in message.splitlines():
        click.echo(f"{prefix} {line}", err=True)


def _print_json(state: UpState) -> None:
    click.echo(json.dumps(dataclasses.asdict(state)))
    sys.stdout.flush()


def _print_welcome(state: UpState) -> None:
    found = server_url(None)
    url = "" if found == state.url else f" --url {state.url}"
    click.echo(
        f"""
  bros-batch is ready.

  Dashboard   {state.url}
  API         {state.url}/v1      for any OpenAI client
  Model       {state.model}
  Data        {state.data_dir}

  Try         {program()} chat{url} "Hello"
              {program()} submit{url} docs.jsonl --prompt "Summarize: {{text}}" --wait
  Press Ctrl-C to stop."""
    )
    sys.stdout.flush()
