"""`bros-batch cancel`, `pause` and `resume`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.connection_options import connection_options
from cli.output import json_option, print_json

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client


def _command(verb: str, help_text: str) -> click.Command:
    """Make the command that posts to the job's route of the same name."""

    @click.command(verb, help=help_text)
    @click.argument("job")
    @json_option
    @connection_options
    def command(client: Client, job: str, as_json: bool) -> None:
        batch = client.post(f"/v1/batches/{client.find_batch(job)['id']}/{verb}")
        if as_json:
            print_json(batch)
        else:
            click.echo(f"{batch['id']} is {batch['status']}")

    return command


cancel = _command("cancel", "Cancel JOB. Finished items keep their results.")
pause = _command(
    "pause", "Pause JOB. It stops within two seconds; unfinished items run again after `resume`."
)
resume = _command("resume", "Resume JOB after a pause.")
