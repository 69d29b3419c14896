"""`bros-batch demo`: a bulk job and chat on temporary services."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from bros_batch.client.plain_text import safe
from cli.failure import Failure
from cli.output import json_option, print_json, program

if TYPE_CHECKING:
    from bros_batch.demo.run import ChatResult, DemoReport


@click.command()
@click.option(
    "--documents", type=click.IntRange(1), default=300, show_default=True, help="Number of documents."
)
@click.option(
    "--out",
    default="bros-demo-results",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the documents and results.",
)
@json_option
@click.argument("engine_arguments", nargs=-1, type=click.UNPROCESSED)
def demo(documents: int, out: Path, as_json: bool, engine_arguments: tuple[str, ...]) -> None:
    """Run a job of generated documents, chat while it runs, and grade all answers.

    The services run in a temporary directory and stop at the end. ENGINE_ARGUMENTS after -- are passed to the engine.
    """
    from bros_batch.demo.run import run_demo
    from bros_batch.up.service_commands import PYTHON

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupted)
    up = [*PYTHON, "-m", "cli", "up"]
    view = _View()
    try:
        report = run_demo(up, documents, out, view, engine_arguments)
    finally:
        view.close()
    if as_json:
        chats = [{**dataclasses.asdict(chat), "is_right": chat.is_right} for chat in report.chats]
        print_json({**dataclasses.asdict(report), "chats": chats})
    else:
        _print_report(report)
    if report.failed:
        raise Failure(f"{report.failed} items failed; see {out}/errors.jsonl.")


def _interrupted(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _View:
    """Shows the steps, a live progress line and the chats on stderr."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        from bros_batch.client.progress import Meter

        self._console = Console(stderr=True, highlight=False)
        self._meter = Meter()
        self._live: Live | None = None

    def step(self, text: str) -> None:
        self.close()
        self._console.print(f"[bold]>[/] {text} ...")

    def progress(self, batch: dict[str, Any]) -> None:
        from rich.live import Live

        from bros_batch.client.progress import live_line

        progress = self._meter.read(batch, time.monotonic())
        if not self._console.is_terminal:
            return
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        self._live.update(live_line("demo", progress))

    def chat(self, result: ChatResult) -> None:
        wait = "no answer" if result.ttft_s is None else f"{1000 * result.ttft_s:.0f} ms to the first token"
        verdict = "correct" if result.is_right else f"wrong; the answer is: {result.truth}"
        for line in (
            f"  chat, with {result.done} documents done: {result.question}",
            f"       {result.answer}",
        ):
            self._console.print(safe(line), markup=False, soft_wrap=True)
        self._console.print(safe(f"       ({wait}; {verdict})"), style="dim", markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _print_report(report: DemoReport) -> None:
    fields = "   ".join(f"{name} {share:.1%}" for name, share in report.accuracy.items())
    waits = [f"{1000 * chat.ttft_s:.0f} ms" for chat in report.chats if chat.ttft_s is not None]
    click.echo(
        f"""
  Documents    {report.documents} in {report.seconds:.1f} s: {report.documents_per_s:.1f} documents/s, \
{report.tokens_per_s:,.0f} tokens/s
  Accuracy     {fields}
               {report.accuracy_all_fields:.1%} of the documents correct in every field, with vendors unseen in training
  Chat         first token after {", ".join(waits) or "-"}, while the job ran
  Results      {report.results_dir}/results.jsonl; the documents and their true values are in documents.jsonl

  All services have stopped. To keep them running, with a dashboard:
    {program()} up
  Then, in another terminal:
    {program()} submit {report.results_dir}/documents.jsonl --prompt "Who is the vendor? {{text}}" --wait
    {program()} chat "What can you do?"
""",
        nl=False,
    )
    sys.stdout.flush()
