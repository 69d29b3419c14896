"""The container files: every command in docker-compose.yml exists and accepts its options."""

from __future__ import annotations

import tomllib
from pathlib import Path

import click
import pytest
import yaml
from setuptools import find_packages

from bros_batch.settings import Settings
from cli.main import main
from engine.command_line import parse_args

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "bros-batch"}


def parsed(command: click.Command, arguments: list[str], name: str, parent: click.Context | None) -> None:
    """Parse the arguments like a real run, down to the last subcommand; click raises UsageError if one is unknown."""
    context = command.make_context(name, list(arguments), parent=parent)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        sub_name, sub_command, sub_arguments = command.resolve_command(context, rest)
        assert sub_command is not None and sub_name is not None
        parsed(sub_command, sub_arguments, sub_name, context)


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_service_runs_a_command_that_exists(name):
    parsed(main, OURS[name]["command"], "bros-batch", None)


def test_the_engine_accepts_its_options():
    config = parse_args(["--model", "m", *OURS["engine"]["command"][1:]])
    assert config.device == "cuda"


def test_an_unknown_option_is_detected():
    with pytest.raises(click.UsageError):
        parsed(main, ["worker", "--no-such-option"], "bros-batch", None)


def test_all_services_exist_and_have_health_checks():
    assert set(COMPOSE["services"]) == {"postgres", "redis", "migrate", "worker", "beat", "engine", "web"}
    for name in ("postgres", "redis", "worker", "engine", "web"):
        assert "healthcheck" in COMPOSE["services"][name], name
    assert "--appendonly" in COMPOSE["services"]["redis"]["command"]
    devices = COMPOSE["services"]["engine"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


def test_every_variable_is_a_setting():
    variables = {name for service in OURS.values() for name in service["environment"]}
    assert variables <= {f"BROS_{field.upper()}" for field in Settings.model_fields}


def packaged() -> set[str]:
    """The packages that an installation gets, as pyproject.toml selects them."""
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    return set(find_packages(str(ROOT), include=find["include"]))


def test_the_image_holds_every_package():
    copied = {
        line.split()[1]
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY") and "." not in line.split()[1]
    }
    assert copied == {package.split(".")[0] for package in packaged()}


def test_every_package_of_ours_is_installed():
    """A folder with modules but without an __init__.py would be left out."""
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("engine", "bros_batch", "cli", "migrations")
        for path in (ROOT / top).rglob("*.py")
    }
    assert found == packaged()
