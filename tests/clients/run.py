"""Run the checks of all clients against a server, each client in an environment of its own, and print what worked.

    scripts/clients                     # all clients, against the demo model
    scripts/clients openai langchain    # those whose names begin so
    scripts/clients --model smollm2 --log

Each file in `checks/` is a client. Its first lines say which packages it needs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clients.model import make_model

ROOT = Path(__file__).parents[2]
CHECKS = Path(__file__).parent / "checks"
SUFFIX = "_checks.py"
METADATA = re.compile(r"^# /// script\n((?:#.*\n)*?)# ///$", re.MULTILINE)
TIMEOUT_S = 1800
# A small model may go on for as long as it is allowed to. It is not one that was made for embeddings.
UP_FLAGS = ("--default-max-tokens", "300", "--embeddings")


@dataclass(frozen=True)
class Client:
    """One client: the file with its checks, and the packages that it needs."""

    name: str
    path: Path
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """How one check of a client ended; `error` is None if it succeeded."""

    client: Client
    check: str
    error: str | None


@dataclass(frozen=True)
class Server:
    """The server that the clients use, and the directory of its model."""

    url: str
    model: str
    model_dir: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
        }
        return {
            **kept,
            "BROS_URL": self.url,
            "CLIENTS_MODEL": self.model,
            "CLIENTS_MODEL_DIR": str(self.model_dir),
            "NO_PROXY": "127.0.0.1,localhost",
        }


def clients() -> list[Client]:
    """Return all clients by name."""
    found = []
    for path in sorted(CHECKS.glob(f"*{SUFFIX}")):
        match = METADATA.search(path.read_text())
        assert match is not None, f"{path} does not say which packages it needs"
        metadata = tomllib.loads("".join(line[1:].strip() + "\n" for line in match[1].splitlines()))
        found.append(Client(path.name.removesuffix(SUFFIX), path, tuple(metadata["dependencies"])))
    return found


def run_client(
    client: Client, python: str | Path, server: Server, checks: Sequence[str] = ()
) -> list[Result]:
    """Run the checks of a client, or the named ones of them."""
    command = [str(python), str(client.path), *checks]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=server.environment,
        timeout=TIMEOUT_S,
        cwd=client.path.parent,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
    if not lines:
        return [Result(client, "start", done.stderr.strip()[-400:] or f"exit code {done.returncode}")]
    return [Result(client, line["check"], line["error"]) for line in lines]


@contextmanager
def running_server(model: str | None, model_dir: Path | None) -> Iterator[Server]:
    """Run `up` with a model: by default the demo model with a chat template that knows tools."""
    with tempfile.TemporaryDirectory(prefix="bros-clients-") as directory:
        if model is None and model_dir is None:
            model_dir = make_model(Path(directory) / "model")
        served = str(model_dir or model)
        command = [sys.executable, "-m", "cli", "up", "--json", "--port", "0", "--model", served]
        command += ["--served-model-name", "served", "--data-dir", str(Path(directory) / "data"), *UP_FLAGS]
        with (Path(directory) / "up.log").open("w+") as log:
            up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
            try:
                assert up.stdout is not None
                line = up.stdout.readline()
                if not line:
                    log.seek(0)
                    sys.exit(f"`up` did not start:\n{log.read()[-2000:]}")
                yield Server(json.loads(line)["url"], "served", Path(served))
            finally:
                up.terminate()
                up.wait(90)


def environment_of(client: Client, folder: Path) -> Path:
    """Return the Python of a client's own environment in `folder`, which is made if its packages have changed."""
    home = folder / client.name
    python = home / "bin" / "python"
    stamp = home / "packages"
    wanted = "\n".join(client.packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"Installing {', '.join(client.packages)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install"]
        subprocess.run([*pip, *client.packages], check=True)
        stamp.write_text(wanted)
    return python


def table(results: Sequence[Result]) -> list[str]:
    """Return the results as a table in Markdown: a row per client."""
    rows = ["| client | works | does not |", "| --- | --- | --- |"]
    for client in dict.fromkeys(result.client for result in results):
        own = [result for result in results if result.client == client]
        works = ", ".join(_words(result.check) for result in own if result.error is None)
        fails = "; ".join(f"{_words(result.check)}: {result.error}" for result in own if result.error)
        rows.append(f"| {', '.join(client.packages)} | {works} | {fails.replace('|', '/') or '-'} |")
    return rows


def _words(check: str) -> str:
    return check.replace("_", " ")


def log(lines: Sequence[str], model: str) -> None:
    """Add the table to benchmarks/LOG.md, as its newest section."""
    path = ROOT / "benchmarks" / "LOG.md"
    text = path.read_text()
    head, mark, rest = text.partition("\n## ")
    title = f"Clients that people use ({datetime.date.today().isoformat()}, {model})"
    path.write_text("\n".join([head, f"## {title}", "", *lines, ""]) + mark + rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="clients to check: beginnings of their names (default: all)")
    parser.add_argument("--model", help="model to serve, as in `up` (default: the demo model with tools)")
    parser.add_argument("--model-dir", type=Path, help="directory of the model, for clients that tokenize")
    parser.add_argument(
        "--environments", type=Path, default=ROOT / ".clients", help="where packages are installed"
    )
    parser.add_argument("--log", action="store_true", help="add the table to benchmarks/LOG.md")
    options = parser.parse_args()
    chosen = [
        client
        for client in clients()
        if not options.names or any(client.name.startswith(name) for name in options.names)
    ]
    if not chosen:
        parser.error(f"no such client; there are {', '.join(client.name for client in clients())}")
    pythons = {client: environment_of(client, options.environments) for client in chosen}
    results: list[Result] = []
    with running_server(options.model, options.model_dir) as server:
        for client in chosen:
            for result in run_client(client, pythons[client], server):
                results.append(result)
                print(
                    f"{'ok    ' if result.error is None else 'FAILED'}  {client.name}: {_words(result.check)}"
                )
                if result.error:
                    print(f"        {result.error}")
    lines = table(results)
    if options.log:
        log(lines, options.model or "the demo model with a template for tools")
    print("", *lines, sep="\n")
    sys.exit(any(result.error for result in results))


if __name__ == "__main__":
    main()
