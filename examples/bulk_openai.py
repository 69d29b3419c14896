"""Run a batch file with the openai client: upload it, wait, and print the results.

bros-batch up            # in another terminal
python examples/bulk_openai.py requests.jsonl
"""

import os
import sys
import time
from pathlib import Path

from openai import OpenAI

if len(sys.argv) != 2:
    sys.exit("usage: python examples/bulk_openai.py requests.jsonl")
client = OpenAI(
    base_url=os.environ.get("BROS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BROS_API_KEY", "none"),
)
with Path(sys.argv[1]).open("rb") as file:
    uploaded = client.files.create(file=file, purpose="batch")
batch = client.batches.create(
    input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
)
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)
    print(batch.status, batch.request_counts, file=sys.stderr)
if batch.output_file_id:
    print(client.files.content(batch.output_file_id).text, end="")
sys.exit(batch.status != "completed")
