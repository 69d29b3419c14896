"""lm-evaluation-harness: the same accuracy through the server as with its own `hf` backend, on a task of our own."""
# /// script
# dependencies = ["lm-eval[api,hf]==0.4.13"]
# ///

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import requests
from service import API, MODEL, MODEL_DIR, URL, run_checks

DOCUMENTS = 40
EXAMPLE = Path(__file__).parents[3] / "examples" / "evaluate_lm_eval.py"
folder = Path(tempfile.mkdtemp(prefix="lm-eval-"))


def _write_tasks() -> None:
    rng = random.Random(1)
    names = ["ACME Ltd.", "D&N Moda NV", "Nordwind GmbH", "Blue Fern Inc.", "Casa Verde SL"]
    lines = []
    for _ in range(DOCUMENTS):
        vendor, total = rng.choice(names), f"{rng.randrange(1, 900)}.{rng.randrange(100):02d}"
        text = f"Invoice from {vendor}\\nDate: 3 March 2026\\nTotal: EUR {total}".replace("\\n", "\n")
        choices = rng.sample(names, 4)
        if vendor not in choices:
            choices[0] = vendor
        lines.append(
            {
                "text": text,
                "total": total,
                "choices": choices,
                "label": choices.index(vendor),
                "vendor": vendor,
            }
        )
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
    }
    choice = {
        "task": "vendor_choice",
        **source,
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}\nVendor:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    generate = {
        "task": "total_generate",
        **source,
        "output_type": "generate_until",
        "doc_to_text": "{{text}}\nTotal:",
        "doc_to_target": "{{total}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for task in (choice, generate):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(task))  # JSON is YAML


def _run(command: list[str]) -> str:
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "OPENAI_API_KEY": "none",
        "BROS_URL": URL,
    }
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr[-400:]
    return done.stdout


def _results(backend: str, arguments: str, task: str) -> Any:
    out = folder / backend
    command = [
        sys.executable, "-m", "lm_eval", "--model", backend, "--model_args", arguments, "--tasks", task,
        "--include_path", str(folder), "--output_path", str(out), "--log_samples", "--batch_size", "8",
        "--device", "cpu",
    ]  # fmt: skip
    _run(command)
    path = max(out.rglob("results_*.json"))
    return json.loads(path.read_text())["results"][task]


def _compare(task: str, metrics: list[str]) -> None:
    if not (folder / "documents.jsonl").exists():
        _write_tasks()
    ours = _results(
        "local-completions",
        f"model={MODEL},base_url={API}/completions,tokenizer={MODEL_DIR},tokenized_requests=True,num_concurrent=4",
        task,
    )
    theirs = _results("hf", f"pretrained={MODEL_DIR},dtype=float32", task)
    found = {metric: (ours[f"{metric},none"], theirs[f"{metric},none"]) for metric in metrics}
    print(f"{task}: {found}", file=sys.stderr)
    assert all(abs(a - b) < 1e-9 for a, b in found.values()), found


def check_generate() -> None:
    _compare("total_generate", ["exact_match"])


def check_loglikelihood() -> None:
    _compare("vendor_choice", ["acc", "acc_norm"])


def check_the_example() -> None:
    prompt = "Invoice from ACME Ltd.\nDate: 3 March 2026\nTotal: EUR 12.50\n\nWhat is the total?"
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": 64,
    }
    answer = requests.post(f"{API}/chat/completions", json=body, timeout=60).json()
    right = answer["choices"][0]["message"]["content"]
    questions = folder / "questions.jsonl"
    lines = [{"prompt": prompt, "answer": right}, {"prompt": prompt, "answer": "another answer"}]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = _run([sys.executable, str(EXAMPLE), str(questions)])
    assert "2 questions, 50.0% answered right" in printed, printed


if __name__ == "__main__":
    run_checks(globals())
