"""`bros-batch rerun`: compute rows of a job again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from cli.connection_options import connection_options
from cli.output import json_option, print_json

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client

MAX_ROWS = 100_000
_PART = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?")


class RowNumbers(click.ParamType[list[int]]):
    """Numbers of rows, such as `3,17,40-60`."""

    name = "ROWS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        rows: set[int] = set()
        for part in str(value).split(","):
            found = _PART.fullmatch(part)
            if found is None:
                self.fail(
                    f"{part.strip()!r} is not a row or a range of rows, such as 17 or 40-60.", param, ctx
                )
            first, last = int(found[1]), int(found[2] or found[1])
            if first < 1 or last < first:
                self.fail(f"{part.strip()!r} is not a range: rows are numbered from 1 upward.", param, ctx)
            if len(rows) + last - first >= MAX_ROWS:
                self.fail(f"that is more than {MAX_ROWS:,} rows; name fewer at a time.", param, ctx)
            rows.update(range(first, last + 1))
        return sorted(rows)


@click.command()
@click.argument("job")
@click.option("--only-failed", is_flag=True, help="All rows that failed, expired or were cancelled.")
@click.option("--rows", type=RowNumbers(), help="These rows, by number: 3,17,40-60.")
@json_option
@connection_options
def rerun(client: Client, job: str, only_failed: bool, rows: list[int] | None, as_json: bool) -> None:
    """Compute rows of JOB again. Their results are replaced when the new ones are there."""
    if only_failed == (rows is not None):
        raise click.UsageError("Name the rows with either --only-failed or --rows.")
    body: dict[str, Any] = {"only": "failed"} if rows is None else {"rows": rows}
    batch = client.post(f"/v1/batches/{client.find_batch(job)['id']}/rerun", body)
    if as_json:
        print_json(batch)
    else:
        click.echo(f"{batch['id']} is {batch['status']}")
