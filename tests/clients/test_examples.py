"""The examples that need answers with a form, against a model that computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.run import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
INVOICE = "Invoice from ACME Ltd.\nDate: 3 March 2026\nTotal: EUR 12.50\n"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(server: Server, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=server.environment, timeout=240)


def test_a_document_becomes_a_pydantic_model(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "invoice.txt"
    path.write_text(INVOICE)
    done = run(server, "extract_pydantic.py", str(path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "vendor": "ACME Ltd",
        "date": "2026-03-03",
        "total": "12.50",
        "currency": "EUR",
    }


def test_a_table_gets_a_column_for_each_field_of_a_model(server: Server, tmp_path: Path) -> None:
    path, output = tmp_path / "invoices.csv", tmp_path / "out.jsonl"
    path.write_text(f'no,text\n007,"{INVOICE}"\n')
    done = run(server, "map_table.py", str(path), str(output))
    assert (done.returncode, done.stdout) == (0, f"{output}\n"), done.stderr
    assert json.loads(output.read_text()) == {
        "no": "007",
        "text": INVOICE,
        "vendor": "ACME Ltd",
        "date": "2026-03-03",
        "total": "12.50",
        "currency": "EUR",
        "_error": None,
    }


def test_the_model_calls_a_function(server: Server) -> None:
    # The first answer has to be a call. Whether the demo model ever answers in words is a matter of chance.
    done = run(server, "tool_loop.py", "How many US dollars are 12.50 euros?")
    assert done.stderr.startswith("ExchangeRate({"), done.stderr
    assert "Traceback" not in done.stderr
