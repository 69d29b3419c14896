"""GuideLLM as a load generator."""
# /// script
# dependencies = ["guidellm==0.8.1"]
# ///

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from service import MODEL, MODEL_DIR, URL, run_checks


def check_throughput() -> None:
    out = Path(tempfile.mkdtemp(prefix="guidellm-"))
    command = [
        str(Path(sys.executable).with_name("guidellm")), "benchmark", "run", "--target", URL, "--model", MODEL,
        "--profile", "throughput", "--max-requests", "20", "--data", "prompt_tokens=64,output_tokens=16",
        "--processor", str(MODEL_DIR), "--output-dir", str(out), "--outputs", "json",
        "--disable-console-interactive",
    ]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-400:]
    (report,) = out.glob("*.json")
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    made = benchmark["metrics"]["request_totals"]
    assert made["successful"] == 20 and made["errored"] == 0, made


if __name__ == "__main__":
    run_checks(globals())
