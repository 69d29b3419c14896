"""`bros-batch export` and `import`: move a job with everything to another server."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bros_batch.client.job_archive import archive_lines, check_archive, write_archive
from bros_batch.client.output_file import written_file
from bros_batch.documents.readers.table_lines import LineStream
from cli.connection_options import connection_options
from cli.failure import Failure
from cli.output import json_option, note, print_json
from cli.output_file import check_output, output_option

if TYPE_CHECKING:
    from bros_batch.client.http_client import Client

POLL_S = 0.3


@click.command("export")
@click.argument("job")
@output_option
@connection_options
def export_job(client: Client, job: str, output: str | None) -> None:
    """Write JOB with everything to a zip file (JOB.zip without -o): settings, rows, results, errors, times and log.

    `bros-batch import` brings it to another server. Pause or cancel a running job first if it should not run on here.
    """
    batch = client.find_batch(job)
    output = output or f"{batch['id']}.zip"
    check_output(output)
    with written_file(output) as file:
        counts = write_archive(client.export_lines(batch["id"]), file)
    if output != "-":
        note(f"{batch['id']} with {counts.total} rows is in {output}.")


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@json_option
@connection_options
def import_job(client: Client, file: str, as_json: bool) -> None:
    """Bring the job in FILE, which `bros-batch export` has written, to this server.

    A job that had ended is as it was. One with unfinished rows continues, and one that was paused stays paused. The job
    gets a new id, so that importing a file twice makes two jobs.
    """
    check_archive(file)
    uploaded = client.upload(f"{Path(file).name}.jsonl", LineStream(archive_lines(file)))
    try:
        batch = client.post("/v1/batches/import", {"input_file_id": uploaded["id"]})
    except Exception:
        with contextlib.suppress(Exception):  # the error above is what matters
            client.delete(f"/v1/files/{uploaded['id']}")
        raise
    while batch["status"] in ("validating", "finalizing", "cancelling"):
        time.sleep(POLL_S)
        batch = client.batch(batch["id"])
    for error in (batch["errors"] or {}).get("data") or []:
        if error["code"] == "invalid_job_file":
            raise Failure(error["message"])
    if as_json:
        print_json(batch)
    else:
        click.echo(f"{batch['id']} is {batch['status']}")
