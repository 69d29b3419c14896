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
        str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console-interactive",
        "--backend", f"kind=openai_http,target={URL},model={MODEL}",
        "--profile", "kind=throughput,max_concurrency=20",
        "--constraint", "kind=max_requests,count=20",
        "--tokenizer", f"kind=hf_auto,model={MODEL_DIR}",
        "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
        "--output", f"kind=json,path={out / 'benchmarks.json'}",
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
