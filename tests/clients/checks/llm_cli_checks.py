"""The `llm` command line tool, with the server as one of its extra OpenAI models."""
# /// script
# dependencies = ["llm==0.36"]
# ///

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from service import API, INVOICE, KEY, MODEL, run_checks

home = Path(tempfile.mkdtemp(prefix="llm-"))
(home / "extra-openai-models.yaml").write_text(
    f"- model_id: served\n  model_name: {MODEL}\n  api_base: {API}\n  supports_tools: true\n  supports_schema: true\n"
)


def llm(*arguments: str) -> str:
    env = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": KEY}
    command = [sys.executable, "-m", "llm", "-m", "served", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-300:]
    return done.stdout


def check_prompt() -> None:
    assert llm("What can you do?").strip()
    assert llm("--no-stream", "-o", "temperature", "0", "What can you do?").strip()


def check_conversation() -> None:
    llm("-s", "Be brief.", INVOICE)
    assert llm("-c", "What is the total?").strip()


def check_schema() -> None:
    text = {"type": "string", "maxLength": 30}
    schema = {
        "type": "object",
        "properties": {"vendor": text, "total": text},
        "required": ["vendor", "total"],
        "additionalProperties": False,
    }
    found = json.loads(llm("--schema", json.dumps(schema), f"Extract.\n\n{INVOICE}"))
    assert set(found) == {"vendor", "total"}


def check_tools() -> None:
    assert llm("-T", "llm_version", "What can you do?").strip()


if __name__ == "__main__":
    run_checks(globals())
