"""Help, usage errors and an unreachable server: exit codes and messages."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from cli.main import COMMANDS, main

NOT_LISTENING = "http://127.0.0.1:9"  # the discard port: nothing listens there

PRINT_HELP_AND_LOADED_MODULES = """
import sys
from cli.main import main
main(["--help"], standalone_mode=False)
heavy = {"torch", "fastapi", "sqlalchemy", "httpx", "rich", "celery", "pydantic", "redis"}
print(sorted(name for name in sys.modules if name in heavy or name.startswith("cli.")), file=sys.stderr)
"""


def run(*arguments: str, stdin: str | bytes | None = None, **env: str) -> Result:
    return CliRunner().invoke(main, arguments, input=stdin, env={"BROS_DATA_DIR": "/nonexistent", **env})


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def test_help_lists_every_command_and_imports_none():
    done = python("-c", PRINT_HELP_AND_LOADED_MODULES)
    for name in COMMANDS:
        assert f"  {name} " in done.stdout
    assert done.stderr.strip() == "['cli.failure', 'cli.main']"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "engine"])
def test_every_command_has_help(name):
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"Usage: main {name} ")


def test_the_engine_command_runs_the_engine():
    done = python("-m", "cli", "engine", "--help")
    assert done.returncode == 0, done.stderr
    assert "--max-num-seqs" in done.stdout


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert run("--version").stdout == f"bros-batch, version {version('bros-batch')}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["lst"], "Did you mean 'list'?"),
        (["submit"], "Missing argument 'FILE'"),
        (["submit", "-", "--temperature", "3"], "3.0 is not in the range"),
        (["submit", "-", "--json", "-o", "-"], "use only one of them"),
        (["submit", "/nonexistent.jsonl"], "/nonexistent.jsonl: No such file or directory."),
        (["list", "--url", "localhost:8000"], "use a URL like http://host:8000"),
        (["up", "--port", "70000"], "70000 is not in the range"),
    ],
)
def test_a_usage_error_is_exit_code_2_and_a_sentence(arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["status", "last"],
        ["results", "last"],
        ["cancel", "last"],
        ["chat", "Hello"],
        ["submit", "-", "--prompt", "{a}"],
    ],
)
def test_an_unreachable_server_is_exit_code_3_and_a_sentence(arguments):
    result = run(*arguments, stdin='{"a": 1}\n', BROS_URL=NOT_LISTENING)
    assert result.exit_code == 3
    assert result.stderr.startswith(
        f"bros-batch: Cannot reach bros-batch at {NOT_LISTENING} (connection refused)"
    )
    assert "Traceback" not in result.stderr
    assert not result.stdout


def test_debug_shows_the_traceback():
    result = run("--debug", "list", BROS_URL=NOT_LISTENING)
    assert type(result.exception).__name__ == "ServiceUnreachable"


def test_an_invalid_setting_is_named():
    result = run("db", "upgrade", BROS_PORT="http")
    assert result.exit_code == 2
    assert "BROS_PORT" in result.stderr


def test_an_unknown_host_name_is_exit_code_3():
    result = run("list", BROS_URL="http://no-such-host.invalid")
    assert result.exit_code == 3
    assert "Cannot reach" in result.stderr
