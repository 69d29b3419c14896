"""`bros-batch list`: list jobs, newest first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from bros_batch.client.plain_text import duration, safe
from bros_batch.item_counts import ItemCounts
from cli.connection_options import connection_options
from cli.output import json_option, print_json

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client


@click.command("list")
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number of jobs."
)
@click.option("--status", "job_status", help="List only jobs with this status, such as in_progress.")
@json_option
@connection_options
def list_jobs(client: Client, limit: int, job_status: str | None, as_json: bool) -> None:
    """List jobs, newest first."""
    found = list(client.batches(limit, status=job_status))
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No jobs yet; use `bros-batch submit` to create one.", err=True)
        return
    rows = [
        ("JOB", "NAME", "STATUS", "DONE", "FAILED", "NOT RUN", "AGE", "LEFT"),
        *(_row(batch) for batch in found),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(batch: dict[str, Any]) -> tuple[str, ...]:
    counts = ItemCounts.of_batch(batch)
    return (
        batch["id"],
        safe(batch.get("name") or "-").replace("\n", " ")[:30],
        batch["status"],
        f"{counts.succeeded}/{counts.total}",
        str(counts.failed),
        str(counts.cancelled + counts.expired),
        duration(time.time() - batch["created_at"]),
        duration(forecast["p50"]) if (forecast := batch.get("forecast")) else "",
    )
