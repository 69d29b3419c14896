"""Answer questions about a text with probabilities, with the openai client.

bros-batch up            # in another terminal
python examples/decide.py "My card was charged twice, and I need the money back today."
"""

import os
import sys

from openai import OpenAI

if len(sys.argv) != 2:
    sys.exit('usage: python examples/decide.py "TEXT"')
client = OpenAI(
    base_url=os.environ.get("BROS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BROS_API_KEY", "none"),
)
decision = client.decisions.create(
    model=client.models.list().data[0].id,
    input=sys.argv[1],
    questions=[
        {"type": "predicate", "name": "urgent", "instructions": "The writer needs an answer today."},
        {
            "type": "choice",
            "name": "team",
            "instructions": "Which team should answer?",
            "choices": [{"value": "billing"}, {"value": "access"}, {"value": "sales"}],
        },
        {
            "type": "score",
            "name": "mood",
            "instructions": "How does the writer feel?",
            "levels": [{"label": "calm"}, {"label": "annoyed"}, {"label": "furious"}],
        },
    ],
)
for answer in decision.answers:
    if answer.type == "predicate":
        print(f"{answer.name}: {answer.probability:.0%} likely")
    elif answer.type == "choice":
        shown = ", ".join(f"{each.value} {each.probability:.0%}" for each in answer.probabilities)
        print(f"{answer.name}: {answer.choice} ({shown})")
    elif answer.type == "score":
        shown = ", ".join(f"{each.label} {each.probability:.0%}" for each in answer.probabilities)
        print(f"{answer.name}: {answer.score:.2f} ({shown})")
