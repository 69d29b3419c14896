"""`bros-batch status`: show or watch the progress of a job."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from bros_batch.client.plain_text import duration, safe, time_left
from bros_batch.db.states import ENDED_JOB
from bros_batch.item_counts import ItemCounts
from cli.connection_options import connection_options
from cli.failure import WORK_FAILED, Failure
from cli.output import json_option, print_json

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client


SHOWN_ERRORS = 3


@click.command()
@click.argument("job")
@click.option("--watch", is_flag=True, help="Watch the job until it ends.")
@json_option
@connection_options
def status(client: Client, job: str, watch: bool, as_json: bool) -> None:
    """Show the progress of JOB, which is a job id, the beginning of one, or `last`.

    With --watch, the exit code is 1 if the job fails, expires or is cancelled. With --watch --json, every change is
    printed as one JSON object per line.
    """
    batch = client.find_batch(job)
    if watch:
        from rich.console import Console

        from bros_batch.client.progress import follow, observe

        if as_json:
            last = None
            for seen in observe(client, batch):
                if seen != last:
                    click.echo(json.dumps(seen, ensure_ascii=False))
                batch = last = seen
        else:
            batch = follow(client, batch, Console(stderr=True))
    elif as_json:
        print_json(batch)
    if not as_json:
        click.echo(summary(batch))
    if watch and batch["status"] != "completed":
        raise Failure("", WORK_FAILED)


def summary(batch: dict[str, Any]) -> str:
    """Summarize a job in a few lines of text."""
    counts = ItemCounts.of_batch(batch)
    usage = batch.get("usage") or {}
    rows = [("job", batch["id"])]
    if batch.get("name"):
        rows.append(("name", batch["name"]))
    rows += [("status", _status(batch)), ("model", batch.get("model") or "-")]
    if batch.get("waiting_reason"):
        rows.append(("waiting", batch["waiting_reason"]))
    rows.append(("items", ", ".join([counts.of_total(), *(counts.shortfalls() or ["0 failed"])])))
    if batch.get("forecast"):
        rows.append(("left", time_left(batch["forecast"])))
    if usage.get("total_tokens"):
        rows.append(("tokens", f"{usage.get('input_tokens', 0):,} in, {usage.get('output_tokens', 0):,} out"))
    reused = batch.get("reused") or {}
    if reused.get("input_tokens"):
        tokens = f"{reused['input_tokens']:,} in, {reused.get('output_tokens', 0):,} out"
        rows.append(("reused", f"{reused.get('items', 0):,} items, {tokens}; not computed again"))
    listed = (batch.get("errors") or {}).get("data") or []
    rows += [("error", error["message"]) for error in listed[:SHOWN_ERRORS]]
    more = max(counts.failed, len(listed)) - SHOWN_ERRORS  # the list of a job has a limit
    if listed and more > 0:
        rows.append(("", f"and {more} more; `bros-batch errors {batch['id']}` shows all"))
    return "\n".join(f"{name and name + ':':<8} {safe(value)}" for name, value in rows)


def _status(batch: dict[str, Any]) -> str:
    """The status and since when: an ended job's time from submission to end, or how long it has been as it is."""
    word, began = batch["status"], batch.get("created_at")
    ended = batch.get(f"{word}_at") if word in ENDED_JOB else None
    if ended is not None and began is not None:
        return f"{word} after {duration(ended - began)}"
    since = began if word == "validating" else batch.get(f"{word}_at")
    return str(word) if since is None else f"{word} for {duration(time.time() - since)}"
