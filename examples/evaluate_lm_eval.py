"""Measure how well a served model answers questions of your own, with EleutherAI's lm-evaluation-harness.

pip install "lm-eval[api]"
bros-batch up            # in another terminal
python examples/evaluate_lm_eval.py questions.jsonl

Each line of the file has a question and its right answer: {"prompt": "...", "answer": "..."}. The harness's own tasks
are measured in the same way, for example with tasks=["arc_easy"].
"""

import os
import sys

import requests
from lm_eval import simple_evaluate

if len(sys.argv) != 2:
    sys.exit("usage: python examples/evaluate_lm_eval.py QUESTIONS.jsonl")
api = os.environ.get("BROS_URL", "http://127.0.0.1:8000") + "/v1"
key = os.environ["OPENAI_API_KEY"] = os.environ.get("BROS_API_KEY", "none")  # which the harness reads
models = requests.get(f"{api}/models", headers={"Authorization": f"Bearer {key}"}, timeout=30).json()
model = models["data"][0]["id"]

found = simple_evaluate(
    model="local-chat-completions",
    model_args={"model": model, "base_url": f"{api}/chat/completions", "num_concurrent": 8},
    tasks=[
        {
            "task": "questions",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": sys.argv[1]}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [], "max_gen_toks": 64, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}],
        }
    ],
    apply_chat_template=True,
    bootstrap_iters=0,
)
result = found["results"]["questions"]
print(
    f"{found['n-samples']['questions']['effective']} questions, {result['exact_match,none']:.1%} answered right"
)
