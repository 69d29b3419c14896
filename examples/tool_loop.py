"""Let the model call a function of yours: ask, run the calls, send the results back, until it answers in words.

python examples/tool_loop.py "How many US dollars are 12.50 euros?"

The model must have been trained to call tools; the demo model was not.
"""

import os
import sys
from typing import Literal

import openai
from openai import OpenAI
from pydantic import BaseModel

MAX_ROUNDS = 5

if len(sys.argv) != 2:
    sys.exit("usage: python examples/tool_loop.py QUESTION")
client = OpenAI(
    base_url=os.environ.get("BROS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BROS_API_KEY", "none"),
)


class ExchangeRate(BaseModel):
    """How much of a currency one euro buys."""

    currency: Literal["USD", "GBP", "JPY"]

    def run(self) -> str:
        return str({"USD": 1.17, "GBP": 0.86, "JPY": 172.4}[self.currency])


tools = [openai.pydantic_function_tool(ExchangeRate)]
model = client.models.list().data[0].id
messages = [{"role": "user", "content": sys.argv[1]}]
for number in range(MAX_ROUNDS):
    # The first answer must be a call. Later ones are up to the model.
    try:
        answer = client.chat.completions.parse(
            model=model,
            messages=messages,
            tools=tools,
            tool_choice="auto" if number else "required",
            max_tokens=500,
        )
    except openai.LengthFinishReasonError:
        sys.exit("The answer is longer than 500 tokens.")
    message = answer.choices[0].message
    if not message.tool_calls:
        print(message.content)
        break
    messages.append(message)
    for call in message.tool_calls:
        result = call.function.parsed_arguments.run()
        print(f"{call.function.name}({call.function.arguments}) = {result}", file=sys.stderr)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
else:
    sys.exit(f"There was no answer in words after {MAX_ROUNDS} rounds.")
