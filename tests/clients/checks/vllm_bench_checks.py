"""`vllm bench serve` as a load generator."""
# /// script
# dependencies = ["vllm==0.33.0"]
# ///

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from service import KEY, MODEL, MODEL_DIR, URL, run_checks

REQUESTS = 40


def _bench(backend: str, endpoint: str, *flags: str) -> None:
    out = Path(tempfile.mkdtemp(prefix="vllm-bench-"))
    command = [
        str(Path(sys.executable).with_name("vllm")), "bench", "serve", "--backend", backend, "--base-url", URL,
        "--endpoint", endpoint, "--model", MODEL, "--tokenizer", str(MODEL_DIR), "--dataset-name", "random",
        "--num-prompts", str(REQUESTS), "--random-input-len", "100", "--random-output-len", "32", "--save-result",
        "--result-dir", str(out), "--result-filename", "result.json", *flags,
    ]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": KEY, "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr[-400:]
    result = json.loads((out / "result.json").read_text())
    assert result["completed"] == REQUESTS, result
    assert result["total_output_tokens"] == 32 * REQUESTS, result["total_output_tokens"]


def check_completions() -> None:
    _bench("openai", "/v1/completions", "--ignore-eos")


def check_chat() -> None:
    _bench("openai-chat", "/v1/chat/completions", "--ignore-eos")


if __name__ == "__main__":
    run_checks(globals())
