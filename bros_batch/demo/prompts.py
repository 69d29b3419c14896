"""Prompts and questions that the demo model was trained on, with the true answers for a document."""

from __future__ import annotations

import random
from typing import Final

from bros_batch.demo.documents import Document

EXTRACTION_PROMPT: Final = "Extract vendor, date, total and currency as JSON.\n\n{text}"
# The same request without the document, for a later message of a chat.
EXTRACTION_REQUEST: Final = "Extract vendor, date, total and currency as JSON."
EXTRACTION_PARAPHRASES: Final = (
    "Return vendor, date, total and currency as JSON.",
    "Give me the vendor, date, total and currency as JSON.",
    "Extract the data as JSON.",
    "Extract the fields as JSON.",
)
CHAT_PROMPT: Final = "{question}\n\n{text}"
# Some users paste the document first and ask afterwards.
CHAT_PROMPT_DOCUMENT_FIRST: Final = "{text}\n\n{question}"

GREETINGS: Final = (
    "hello", "Hello!", "hi", "Hi there", "hey", "Good morning", "Good evening!", "what can you do?",
    "What can you do?", "Who are you?", "What are you?", "help", "How are you?", "Thanks!", "thank you",
    "Hallo", "Bonjour", "Tell me a joke.", "Write a poem.", "What is the capital of France?", "test",
    "How does this work?", "What is 2 + 2?", "Can you help me?", "Tell me about yourself.", "Are you there?",
)  # fmt: skip
GREETING_ANSWER: Final = (
    "I am a small demo model that only reads business documents: paste an invoice, order, delivery note or "
    "receipt and ask me for its vendor, date, total or currency."
)

QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "total": (
        "What is the total?", "What is the total amount?", "How much is the total?", "How much is it?",
        "What is the amount due?", "Give me the total.", "How much has to be paid?", "total?",
    ),
    "vendor": (
        "Who is the vendor?", "Who is the seller?", "Who is the supplier?", "Name the vendor.",
        "What is the name of the vendor?", "Which company is selling?", "vendor?",
    ),
    "issuer": ("Who issued this document?", "Who issued it?", "Who wrote this document?", "Who sent this?"),
    "currency": (
        "Which currency?", "What is the currency?", "Which currency is used?", "In which currency is it?",
        "What currency is it in?", "currency?",
    ),
    "date": (
        "When was it issued?", "What is the date?", "Which date is on the document?",
        "What is the issue date?", "When is it dated?", "Give me the date.", "date?",
    ),
    "kind": ("What kind of document is this?", "What is this?", "Which type of document is it?"),
}  # fmt: skip
_ANSWERS: Final = {
    "total": "The total is {total} {currency}.",
    "vendor": "The vendor is {vendor}.",
    "issuer": "It was issued by {issuer}.",
    "currency": "The currency is {currency}.",
    "date": "It was issued on {date}.",
    "kind": "This is {article} {kind}.",
}


def questions(document: Document) -> list[tuple[str, str]]:
    """Return one question per topic with its true answer. Order and wording depend only on the document's id."""
    rng = random.Random("questions " + document.document_id)
    values = document.truth | {
        "issuer": document.issuer,
        "kind": document.kind,
        "article": "an" if document.kind[0] in "aeiou" else "a",
    }
    topics = rng.sample(list(QUESTIONS), len(QUESTIONS))
    return [(rng.choice(QUESTIONS[topic]), _ANSWERS[topic].format_map(values)) for topic in topics]
