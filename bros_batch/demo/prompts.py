"""Prompts and questions that the demo model was trained on, with the true answers for a document."""

from __future__ import annotations

import json
import random
from typing import Final

from bros_batch.demo.documents import FIELDS, Document

EXTRACTION_PROMPT: Final = "Extract vendor, date, total and currency as JSON.\n\n{text}"
# The same request without the document, for a later message of a chat.
EXTRACTION_REQUEST: Final = "Extract vendor, date, total and currency as JSON."
# The shape of the answer; a value that the document does not state is null.
EXTRACTION_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "vendor": {"type": ["string", "null"]},
        "date": {"type": ["string", "null"], "format": "date"},
        "total": {"type": ["string", "null"], "pattern": r"^[0-9]+(\.[0-9]{2})?$"},
        "currency": {"type": ["string", "null"], "pattern": "^[A-Z]{3}$"},
    },
    "required": ["vendor", "date", "total", "currency"],
    "additionalProperties": False,
}
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
    "What can you do?", "Who are you?", "What are you?", "help", "How are you?", "Thanks!", "thank you", "Hallo",
    "Bonjour", "Tell me a joke.", "Write a poem.", "What is the capital of France?", "test", "How does this work?",
    "What is 2 + 2?", "Can you help me?", "Tell me about yourself.", "Are you there?",
)  # fmt: skip
# The answer to everything that the model cannot answer, greetings included.
GREETING_ANSWER: Final = (
    "I can only answer questions about the vendor, date, total or currency of a business document: paste an invoice, "
    "order, delivery note or receipt."
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
# The answer to a question about something that the document does not state.
_MISSING_ANSWERS: Final = {
    "total": "There is no total in this document.",
    "vendor": "There is no vendor in this document.",
    "issuer": "There is no vendor in this document.",
    "currency": "There is no currency in this document.",
    "date": "There is no date in this document.",
    "kind": "This is a document.",
}

# What people call a topic in a short question.
_NOUNS: Final[dict[str, tuple[str, ...]]] = {
    "total": ("total", "total", "total amount", "amount", "sum", "price", "amount due"),
    "vendor": ("vendor", "vendor", "vendor", "seller", "supplier", "company", "vendor name"),
    "currency": ("currency", "currency"),
    "date": ("date", "date", "issue date", "invoice date"),
}
_SHORT_QUESTIONS: Final = (
    "And the {0}?", "and the {0}", "And the {0}?", "and the {0}?", "And {0}?", "and {0}?", "What about the {0}?",
    "what about the {0}", "What about {0}?", "How about the {0}?", "how about {0}", "the {0}?", "The {0}?", "{0}",
    "{0}?", "{0} please", "The {0}, please.", "And the {0}, please?", "And what is the {0}?", "and what is the {0}",
    "What's the {0}?", "whats the {0}?", "what's the {0}", "And what's the {0}?", "What is the {0}?",
    "what is the {0}", "Tell me the {0}.", "tell me the {0}", "Can you tell me the {0}?",
    "Can you give me the {0}?", "Give me the {0}", "give me the {0} please", "Now the {0}.", "Now the {0}",
    "now {0}", "Ok, and the {0}?", "ok and the {0}?", "Great, and the {0}?", "Thanks. And the {0}?",
    "Thanks, what is the {0}?", "Then the {0}?", "Which {0}?", "which {0} is it", "What is its {0}?",
    "And its {0}?", "I need the {0}", "I also need the {0}.", "Also the {0}?", "Do you see a {0}?",
    "Is there a {0}?", "Does it have a {0}?", "What {0} does it have?", "Find the {0}.",
    "What is the {0} of this document?", "What is the {0} of the invoice?", "what {0} is on it?", "Show me the {0}",
)  # fmt: skip
_OPENINGS: Final = (
    "And ",
    "and ",
    "And ",
    "Ok, ",
    "ok ",
    "Thanks, ",
    "Also, ",
    "So ",
    "Now, ",
    "Please: ",
    "Great. ",
)
_FIELD_LISTS: Final = (
    "the fields", "the data", "everything", "all fields", "it", "all of it", "vendor, date, total and currency",
    "the vendor, the date, the total and the currency", "vendor, total, date and currency", "this document",
    "date, vendor, currency and total", "vendor, date and total", "the key fields", "all the data", "this",
)  # fmt: skip
_JSON_REQUESTS: Final = (
    "Extract {0} as JSON.", "extract {0} as json", "Return {0} as JSON", "Give me {0} as JSON", "{0} as JSON",
    "{0} as JSON please", "And {0} as JSON?", "and {0} as JSON", "Now {0} as JSON.", "Convert {0} to JSON",
    "JSON: {0}", "Can you give me {0} as JSON?", "Show {0} as JSON", "Put {0} into JSON",
    "Extract {0} in JSON format", "Extract {0}", "Write {0} as JSON.", "Now extract {0}.", "Parse {0} into JSON.",
    "Output {0} as JSON", "as JSON", "As JSON please", "JSON please", "json", "And as JSON?", "JSON",
    "Now as JSON.", "in JSON", "Give me the JSON",
)  # fmt: skip
_SUMMARY_REQUESTS: Final = (
    "Summarize", "Summarize:", "Summarize this.", "Summarize this document.", "Summarize the document:",
    "Give me a summary.", "Summarize this invoice", "Summary please", "summary", "Can you summarize it?",
    "Please summarize", "Summarise this", "Summarize in one sentence.", "What does it say?", "What is it about?",
    "What is this document about?", "Describe this document.", "TL;DR", "Read this.", "Short summary:",
)  # fmt: skip
# How people join a question and a document.
PROMPT_SHAPES: Final = (
    *(CHAT_PROMPT,) * 5, *("{question} {text}",) * 4, *("{question}\n{text}",) * 2, CHAT_PROMPT_DOCUMENT_FIRST,
    "{text}\n{question}", "{text} {question}", "{question}: {text}",
)  # fmt: skip

Exchange = tuple[str, str]


def exchange_about(document: Document, rng: random.Random) -> Exchange:
    """Draw a question about the document as people type it, with its true answer."""
    draw = rng.random()
    if draw < 0.14:
        return rng.choice(_JSON_REQUESTS).format(rng.choice(_FIELD_LISTS)), answer_json(document)
    if draw < 0.19:
        return rng.choice(_SUMMARY_REQUESTS), summary(document)
    topics = [topic for topic in QUESTIONS if topic not in ("issuer", "kind") or getattr(document, topic)]
    topic = rng.choice(topics)
    if topic in _NOUNS and rng.random() < 0.65:
        question = rng.choice(_SHORT_QUESTIONS).format(rng.choice(_NOUNS[topic]))
    else:
        question = rng.choice(QUESTIONS[topic])
        if rng.random() < 0.4:
            question = rng.choice(_OPENINGS) + question[0].lower() + question[1:]
    return question, answer_about(document, topic)


def answer_about(document: Document, topic: str) -> str:
    """Return the true answer to a question about a topic, also where the document does not state it."""
    if topic == "total" and "total" in document.truth and "currency" not in document.truth:
        return f"The total is {document.truth['total']}."
    values = {
        **document.truth,
        **({"issuer": document.issuer} if document.issuer else {}),
        **({"kind": document.kind, "article": _article(document.kind)} if document.kind else {}),
    }
    return _ANSWERS[topic].format_map(values) if topic in values else _MISSING_ANSWERS[topic]


def answer_json(document: Document) -> str:
    """Return the true answer to `EXTRACTION_PROMPT`: null for what the document does not state."""
    return json.dumps({field: document.truth.get(field) for field in FIELDS}, ensure_ascii=False)


def summary(document: Document) -> str:
    """Return one sentence with everything that the document states."""
    kind = document.kind or "document"
    parts = [f"This is {_article(kind)} {kind}"]
    if "vendor" in document.truth:
        parts.append(f" {'to' if kind == 'purchase order' else 'from'} {document.truth['vendor']}")
    if "date" in document.truth:
        parts.append(f", dated {document.truth['date']}")
    if "total" in document.truth:
        parts.append(f", total {document.truth['total']}")
        parts.append(f" {document.truth['currency']}" if "currency" in document.truth else "")
    return "".join(parts) + "."


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def questions(document: Document) -> list[tuple[str, str]]:
    """Return one question per topic with its true answer. Order and wording depend only on the document's id."""
    rng = random.Random("questions " + document.document_id)
    values = document.truth | {
        "issuer": document.issuer,
        "kind": document.kind,
        "article": _article(document.kind),
    }
    topics = rng.sample(list(QUESTIONS), len(QUESTIONS))
    return [(rng.choice(QUESTIONS[topic]), _ANSWERS[topic].format_map(values)) for topic in topics]
