"""What a newcomer tries first with the demo model: follow-ups, missing fields, and questions it cannot answer."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bros_batch.demo.prompts import EXTRACTION_PROMPT, GREETING_ANSWER
from bros_batch.settings import DEMO_MODEL_DIR

INVOICE = "Invoice from ACME Ltd. Date: 3 March 2026. Total: EUR 12.50"
WITHOUT_DATE = "Invoice from ACME Ltd. Total: EUR 12.50"
FIRST = f"What is the total? {INVOICE}"

Ask = Callable[..., str]


@pytest.fixture(scope="module")
def ask() -> Ask:
    """Answers the last of several messages, which alternate between user and model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL_DIR, dtype=torch.float32).eval()

    def answer(*messages: str) -> str:
        roles = ("user", "assistant")
        chat = [{"role": roles[number % 2], "content": text} for number, text in enumerate(messages)]
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=128, do_sample=False)
        text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text

    return answer


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("And the vendor?", "The vendor is ACME Ltd."),
        ("and when was it issued?", "It was issued on 2026-03-03."),
        ("What about the date?", "It was issued on 2026-03-03."),
        ("and the currency", "The currency is EUR."),
        ("Thanks!", GREETING_ANSWER),
        ("Who is the president of France?", GREETING_ANSWER),
    ],
)
def test_a_follow_up_is_answered(ask: Ask, question: str, answer: str) -> None:
    assert ask(FIRST, "The total is 12.50 EUR.", question) == answer


def test_the_first_question_of_the_readme_is_answered(ask: Ask) -> None:
    assert ask(FIRST) == "The total is 12.50 EUR."


def test_a_document_without_a_date_has_none(ask: Ask) -> None:
    fields = {"vendor": "ACME Ltd", "date": None, "total": "12.50", "currency": "EUR"}
    assert json.loads(ask(EXTRACTION_PROMPT.format(text=WITHOUT_DATE))) == fields
    assert ask(f"What is the date? {WITHOUT_DATE}") == "There is no date in this document."
    assert (
        json.loads(ask(f"What is the total? {WITHOUT_DATE}", "The total is 12.50 EUR.", "As JSON please"))
        == fields
    )


def test_a_summary_names_what_the_document_states(ask: Ask) -> None:
    expected = "This is an invoice from ACME Ltd, dated 2026-03-03, total 12.50 EUR."
    assert ask(f"Summarize: {INVOICE}") == expected


@pytest.mark.parametrize(
    "question",
    ["Hello", "Why is the sky blue?", "Write a python function", "What is the total?", "And the vendor?"],
)
def test_a_question_that_it_cannot_answer_gets_an_honest_sentence(ask: Ask, question: str) -> None:
    assert ask(question) == GREETING_ANSWER
