"""Chat with the openai client and print the answer as it is generated.

python examples/chat_stream.py "What can you do?"
"""

import os
import sys

from openai import OpenAI

if len(sys.argv) != 2:
    sys.exit("usage: python examples/chat_stream.py MESSAGE")
client = OpenAI(
    base_url=os.environ.get("BROS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BROS_API_KEY", "none"),
)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": sys.argv[1]}]
for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
