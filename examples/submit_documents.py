"""Submit plain documents with one prompt template, over HTTP, and print the id and answer of each.

python examples/submit_documents.py docs.jsonl "Summarize: {text}"
"""

import json
import os
import sys
import time
from pathlib import Path

import httpx

if len(sys.argv) != 3:
    sys.exit("usage: python examples/submit_documents.py docs.jsonl PROMPT")
key = os.environ.get("BROS_API_KEY")
api = httpx.Client(
    base_url=os.environ.get("BROS_URL", "http://127.0.0.1:8000") + "/v1",
    headers={"Authorization": f"Bearer {key}"} if key else {},
    timeout=60,
)


def post(path, **body):
    return api.post(path, **body).raise_for_status().json()


with Path(sys.argv[1]).open("rb") as file:
    uploaded = post("/files", data={"purpose": "batch"}, files={"file": file})
job = {"input_file_id": uploaded["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
batch = post("/batches", json={**job, "defaults": {"prompt": sys.argv[2], "max_tokens": 200}})
while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(1)
    batch = api.get(f"/batches/{batch['id']}").raise_for_status().json()
results = api.get(f"/batches/{batch['id']}/results").raise_for_status()
for line in results.content.splitlines():  # bytes end at line breaks only; text would end at more characters
    result = json.loads(line)
    print(result["custom_id"], result["response"]["body"]["choices"][0]["message"]["content"], sep="\t")
