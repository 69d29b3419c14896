"""`bros-batch log`: show what happened to a job."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from bros_batch.client.plain_text import safe
from cli.connection_options import connection_options
from cli.output import json_option, print_json

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client


@click.command("log")
@click.argument("job")
@json_option
@connection_options
def show_log(client: Client, job: str, as_json: bool) -> None:
    """Show what happened to JOB, oldest first: its changes of state, and the calls of its webhook."""
    events = client.get(f"/v1/batches/{client.find_batch(job)['id']}/events")["data"]
    if as_json:
        print_json(events)
        return
    for event in events:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
        click.echo(f"{at}  {safe(event['text'])}")
