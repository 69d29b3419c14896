"""Ask in the background: the response survives the end of this program, and any crash of the service.

bros-batch up            # in another terminal
python examples/background_response.py "What is the total? Invoice from ACME Ltd. Total: EUR 12.50"
python examples/background_response.py resp_...      # read it again, from any program, as long as it is kept
"""

import os
import sys
import time

from openai import OpenAI

if len(sys.argv) != 2:
    sys.exit("usage: python examples/background_response.py QUESTION | RESPONSE_ID")
client = OpenAI(
    base_url=os.environ.get("BROS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BROS_API_KEY", "none"),
)
if sys.argv[1].startswith("resp_"):
    response = client.responses.retrieve(sys.argv[1])
else:
    model = client.models.list().data[0].id
    # As bulk, which waits for its turn; service_tier="priority" runs it as a chat.
    response = client.responses.create(model=model, input=sys.argv[1], background=True)
    print(response.id, file=sys.stderr)
while response.status in ("queued", "in_progress"):
    time.sleep(0.2)
    response = client.responses.retrieve(response.id)
print(response.output_text)
if response.status not in ("completed", "incomplete"):
    sys.exit(f"{response.status}: {response.error.message if response.error else 'no answer'}")
