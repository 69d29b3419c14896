"""`bros-batch cancel`, `pause`, `resume` and `retry`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.connection_options import service_options
from cli.output import json_option, print_json

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client


def _command(verb: str, help_text: str) -> click.Command:
    @click.command(verb, help=help_text)
    @click.argument("job")
    @json_option
    @service_options
    def command(client: Client, job: str, as_json: bool) -> None:
        batch = client.post(f"/v1/batches/{client.find_batch(job)['id']}/{verb}")
        if as_json:
            print_json(batch)
        else:
            click.echo(f"{batch['id']} is {batch['status']}")

    return command


cancel = _command("cancel", "Stop JOB. Lines that are finished keep their results.")
pause = _command("pause", "Start no more lines of JOB; what has started still finishes.")
resume = _command("resume", "Go on with a paused JOB.")
retry = _command("retry", "Run the lines of JOB again that have failed, expired or been cancelled.")
