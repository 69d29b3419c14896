"""`client.decisions` of the `openai` package: questions about a document, answered with probabilities."""
# /// script
# dependencies = ["openai==3.51.0"]
# ///

from __future__ import annotations

from typing import Any

from openai import OpenAI
from openai_checks import batch_of
from service import API, INVOICE, KEY, MODEL, run_checks

client = OpenAI(base_url=API, api_key=KEY, max_retries=0, timeout=120)
QUESTIONS: Any = [
    {"type": "predicate", "name": "paid", "instructions": "This invoice is paid."},
    {
        "type": "choice",
        "name": "team",
        "instructions": "Which team?",
        "choices": [{"value": "billing"}, {"value": "access"}, {"value": True, "description": "sales"}],
    },
    {
        "type": "score",
        "name": "tone",
        "instructions": "How polite is it?",
        "levels": [{"label": "rude"}, {"label": "polite", "description": "with a greeting"}],
    },
]


def check_decisions() -> None:
    decision = client.decisions.create(model=MODEL, input=INVOICE, questions=QUESTIONS)
    paid, team, tone = decision.answers
    assert paid.type == "predicate" and 0 <= paid.probability <= 1 and paid.name == "paid"
    assert team.type == "choice" and team.choice in ("billing", "access", True)
    assert abs(sum(each.probability for each in team.probabilities) - 1) < 1e-6
    assert tone.type == "score" and [each.label for each in tone.probabilities] == ["rude", "polite"]
    assert decision.usage.input_tokens > 0


def check_batches_of_decisions() -> None:
    for body in batch_of("/v1/decisions", [{"input": INVOICE, "questions": QUESTIONS}] * 2):
        assert [answer["type"] for answer in body["answers"]] == ["predicate", "choice", "score"]


if __name__ == "__main__":
    run_checks(globals())
