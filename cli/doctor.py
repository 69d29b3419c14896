"""`bros-batch doctor`: check the installation and suggest fixes."""

from __future__ import annotations

import dataclasses

import click

from bros_batch.client.plain_text import safe
from cli.failure import Failure
from cli.output import json_option, print_json
from cli.settings_options import load_settings, settings_options

COLORS = {"ok": "green", "note": "yellow", "broken": "red"}


@click.command()
@settings_options("data_dir", "model")
@json_option
def doctor(data_dir: str | None, model: str | None, as_json: bool) -> None:
    """Check the installation and suggest fixes. Exits with 1 if something is broken."""
    from bros_batch.up.doctor import Health, examine

    findings = []
    for finding in examine(load_settings(data_dir=data_dir, model=model)):
        findings.append(finding)
        if not as_json:
            mark = click.style(f"{finding.health:<6}", fg=COLORS[finding.health])
            click.echo(f"{mark}  {finding.name:<14}  {safe(finding.detail)}")
            if finding.fix:
                click.echo(f"{'':24}{safe(finding.fix)}")
    broken = [finding.name for finding in findings if finding.health is Health.BROKEN]
    if as_json:
        print_json({"ok": not broken, "findings": [dataclasses.asdict(finding) for finding in findings]})
    if broken:
        raise Failure(f"broken: {', '.join(broken)}.")
