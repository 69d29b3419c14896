"""`bros-batch up`: every service on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from cli.configuration import load_settings, settings_options
from cli.connection_options import DEFAULT_URL, local_url
from cli.failure import Failure
from cli.output import program

if TYPE_CHECKING:
    from bros_batch.up.lock import UpState

COLOURS = {
    "redis": "red",
    "engine": "green",
    "worker": "yellow",
    "beat": "magenta",
    "web": "blue",
    "up": "cyan",
}


@click.command(context_settings={"ignore_unknown_options": False})
@settings_options(
    "model", "served_model_name", "data_dir", "host", "port", "api_key", "insecure", "max_model_len"
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Worker processes.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute  [auto]")
@click.option("--dtype", help="auto, float32, bfloat16 or float16  [auto]")
@click.option("--max-num-seqs", type=click.IntRange(1), help="Requests computed at once.")
@click.option(
    "--gpu-memory-utilization", type=click.FloatRange(0, 1), help="Share of the GPU's memory  [0.9]"
)
@click.option("-v", "--verbose", is_flag=True, help="Show every line of every service.")
@click.option("--json", "as_json", is_flag=True, help="When ready, print one JSON object with the URL.")
@click.argument("engine_arguments", nargs=-1, type=click.UNPROCESSED)
def up(
    workers: int,
    device: str | None,
    dtype: str | None,
    max_num_seqs: int | None,
    gpu_memory_utilization: float | None,
    verbose: bool,
    as_json: bool,
    engine_arguments: tuple[str, ...],
    **flags: Any,
) -> None:
    """Run every service, until Ctrl-C, which drains; once more kills. After --, ENGINE_ARGUMENTS go to the engine."""
    from bros_batch.up.supervisor import UpOptions, run_up

    settings = load_settings(**flags)
    engine_flags = {
        "--device": device,
        "--dtype": dtype,
        "--max-num-seqs": max_num_seqs,
        "--gpu-memory-utilization": gpu_memory_utilization,
    }
    given = [part for flag, value in engine_flags.items() if value is not None for part in (flag, str(value))]
    options = UpOptions(workers=workers, engine_args=(*given, *engine_arguments), verbose=verbose)
    code = run_up(settings, options, say, _print_json if as_json else _print_welcome)
    if code:
        raise Failure("", code)


def say(source: str, message: str) -> None:
    """A line of the console, with a coloured prefix where stderr is a terminal."""
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    prefix = click.style(f"{source:>6} |", fg=COLOURS.get(source)) if coloured else f"{source:>6} |"
    for line in message.splitlines():
        click.echo(f"{prefix} {line}", err=True)


def _print_json(state: UpState) -> None:
    click.echo(json.dumps(dataclasses.asdict(state)))
    sys.stdout.flush()


def _print_welcome(state: UpState) -> None:
    found = os.environ.get("BROS_URL") or local_url() or DEFAULT_URL
    url = "" if found == state.url else f" --url {state.url}"
    click.echo(
        f"""
  bros-batch is ready.

  Dashboard   {state.url}
  API         {state.url}/v1      for any OpenAI client
  Model       {state.model}
  Data        {state.data_dir}

  Try         {program()} chat{url} "Hello"
              {program()} submit{url} docs.jsonl --prompt "Summarise: {{text}}" --wait
  Ctrl-C stops."""
    )
    sys.stdout.flush()
