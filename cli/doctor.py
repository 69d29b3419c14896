"""`bros-batch doctor`: what works, what does not, and the mend."""

from __future__ import annotations

import dataclasses

import click

from cli.configuration import load_settings, settings_options
from cli.failure import Failure
from cli.output import json_option, print_json, safe

COLOURS = {"ok": "green", "note": "yellow", "broken": "red"}


@click.command()
@settings_options("data_dir", "model")
@json_option
def doctor(data_dir: str | None, model: str | None, as_json: bool) -> None:
    """Say what works, what does not, and the mend. Exit 1 when something is broken."""
    from bros_batch.up.doctor import Health, examine

    findings = []
    for finding in examine(load_settings(data_dir=data_dir, model=model)):
        findings.append(finding)
        if not as_json:
            mark = click.style(f"{finding.health:<6}", fg=COLOURS[finding.health])
            click.echo(f"{mark}  {finding.name:<14}  {safe(finding.detail)}")
            if finding.mend:
                click.echo(f"{'':24}{safe(finding.mend)}")
    broken = [finding.name for finding in findings if finding.health is Health.BROKEN]
    if as_json:
        print_json({"ok": not broken, "findings": [dataclasses.asdict(finding) for finding in findings]})
    if broken:
        raise Failure(f"broken: {', '.join(broken)}.")
