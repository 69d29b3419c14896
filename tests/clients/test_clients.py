"""The clients whose packages are installed work against a real server. `scripts/clients` runs all of them."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.clients.run import Client, Result, Server, clients, run_client

CHECK = re.compile(r"^def check_(\w+)", re.MULTILINE)
NEEDS_ITS_OWN = {"lm_eval", "vllm_bench", "guidellm"}  # these take minutes

_results: dict[Client, list[Result]] = {}


def _is_installed(client: Client) -> bool:
    """Return whether the packages of a client are installed here, in the same major version."""
    for package in client.packages:
        name, _, wanted = package.partition("==")
        try:
            found = version(name.partition("[")[0])
        except PackageNotFoundError:
            return False
        if found.partition(".")[0] != wanted.partition(".")[0]:
            return False
    return True


def _checks() -> list[tuple[Client, str]]:
    return [
        (client, check)
        for client in clients()
        if client.name not in NEEDS_ITS_OWN and _is_installed(client)
        for check in CHECK.findall(client.path.read_text())
    ]


@pytest.mark.slow
@pytest.mark.timeout(
    900
)  # the first start on a machine compiles kernels, and a client runs all its checks at once
@pytest.mark.parametrize(
    ("client", "check"), [pytest.param(*each, id=f"{each[0].name}-{each[1]}") for each in _checks()]
)
def test_client(server: Server, client: Client, check: str) -> None:
    if client not in _results:
        _results[client] = run_client(client, sys.executable, server)
    errors = {result.check: result.error for result in _results[client]}
    assert check in errors, errors
    assert errors[check] is None


def test_the_openai_client_is_checked() -> None:
    assert {"openai", "openai_decisions"} <= {client.name for client, _ in _checks()}
