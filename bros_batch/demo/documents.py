"""Synthetic business documents with known answers, for training and testing the demo model.

`generate_documents` is a pure function of its seed: document i of a seed is the same whatever the count.
Vendors are split by name: seeds from `HELD_OUT_SEED` on draw only vendor names that no smaller seed can
produce, so accuracy on them is accuracy on vendors never seen in training.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from bros_batch.demo import vocabulary as words
from bros_batch.demo.layouts import Sheet, lay_out

HELD_OUT_SEED: Final = 1_000_000_000
_HELD_OUT_SHARE: Final = 8  # one vendor name in 8 is kept for held-out seeds

EXTRACTION_PROMPT: Final = "Extract vendor, date, total and currency as JSON.\n\n{text}"
# The same without the document: a later turn of a chat.
EXTRACTION_REQUEST: Final = "Extract vendor, date, total and currency as JSON."
EXTRACTION_PARAPHRASES: Final = (
    "Return vendor, date, total and currency as JSON.",
    "Give me the vendor, date, total and currency as JSON.",
    "Extract the data as JSON.",
    "Extract the fields as JSON.",
)
CHAT_PROMPT: Final = "{question}\n\n{text}"
# Some people paste first and ask afterwards.
CHAT_PROMPT_DOCUMENT_FIRST: Final = "{text}\n\n{question}"
FIELDS: Final = ("vendor", "date", "total", "currency")

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


@dataclass(frozen=True, slots=True)
class Document:
    """One synthetic document.

    `truth` has the keys of `FIELDS`: an ISO date, a plain decimal total ("1234.56"), an ISO currency code.
    `issuer` is who wrote the document: the vendor, except on a purchase order, which its buyer writes.
    """

    document_id: str
    kind: str
    language: str
    text: str
    truth: dict[str, str]
    issuer: str


def generate_documents(count: int, seed: int) -> Iterator[Document]:
    """Yield `count` documents; seeds from `HELD_OUT_SEED` on never share a vendor with the seeds below it."""
    for index in range(count):
        yield _document(f"{seed}-{index:06d}", held_out=seed >= HELD_OUT_SEED)


def questions(document: Document) -> list[tuple[str, str]]:
    """One question of every topic with its true answer; order and wording follow from the document's id."""
    rng = random.Random("questions " + document.document_id)
    values = document.truth | {
        "issuer": document.issuer,
        "kind": document.kind,
        "article": "an" if document.kind[0] in "aeiou" else "a",
    }
    topics = rng.sample(list(QUESTIONS), len(QUESTIONS))
    return [(rng.choice(QUESTIONS[topic]), _ANSWERS[topic].format_map(values)) for topic in topics]


def is_held_out_vendor(name: str) -> bool:
    """Whether the name belongs to the held-out side of the split."""
    return zlib.crc32(name.encode()) % _HELD_OUT_SHARE == 0


def company_name(rng: random.Random) -> str:
    """A composed company name; never ends with a full stop, so that it can end a sentence unambiguously."""
    shape = rng.random()
    legal = " " + rng.choice(words.LEGAL_FORMS) if rng.random() < 0.7 else ""
    sector = rng.choice(words.SECTORS)
    if shape < 0.20:
        return f"{rng.choice(words.STEMS)}{rng.choice(words.ENDINGS)} {sector}{legal}"
    if shape < 0.50:
        made_up = "".join(rng.choices(words.SYLLABLES, k=rng.choice((2, 2, 3)))).capitalize()
        return f"{made_up} {sector}{legal}" if rng.random() < 0.6 else f"{made_up}{legal or ' ' + sector}"
    if shape < 0.65:
        partner = rng.choice((*words.FAMILIES, "Sons", "Söhne", "Fils", "Partners", "Co"))
        return f"{rng.choice(words.FAMILIES)} & {partner}{legal}"
    if shape < 0.78:
        return f"{rng.choice(words.FAMILIES)} {sector}{legal}"
    if shape < 0.88:
        place = rng.choice((*words.STEMS, "Studio", "Atelier", "Depot"))
        return f"{place} {rng.randint(2, 99)}{legal or ' ' + sector}"
    initials = rng.sample("ABCDEFGHJKLMNPRSTVW", 2)
    return f"{initials[0]}&{initials[1]} {sector}{legal}"


def _document(document_id: str, held_out: bool) -> Document:
    rng = random.Random(document_id)
    vendor = _vendor(rng, held_out)
    customer = company_name(rng)
    while customer == vendor:
        customer = company_name(rng)
    kind = rng.choice(words.KINDS)
    language = rng.choice(words.LANGUAGES)
    currency = rng.choice(("EUR", "EUR", "USD", "GBP", *words.CURRENCIES))
    issued = date(2019, 1, 1) + timedelta(days=rng.randrange(365 * 11))
    sheet = _sheet(rng, kind, language, vendor, customer, currency, issued)
    total = str(sheet.total) if currency == "JPY" else f"{sheet.total // 100}.{sheet.total % 100:02d}"
    truth = {"vendor": vendor, "date": issued.isoformat(), "total": total, "currency": currency}
    issuer = customer if kind == "purchase order" else vendor
    return Document(document_id, kind, language, lay_out(rng, sheet), truth, issuer)


def _vendor(rng: random.Random, held_out: bool) -> str:
    while True:
        name = company_name(rng)
        if is_held_out_vendor(name) == held_out:
            return name


def _sheet(
    rng: random.Random, kind: str, language: str, vendor: str, customer: str, currency: str, issued: date
) -> Sheet:
    """The content of a document, amounts in the currency's smallest unit (cents; yen for JPY)."""
    lines = []
    for name in rng.sample(words.ITEMS[language], rng.choice((1, 2, 2, 3))):
        price = rng.randint(100, rng.choice((2_000, 20_000, 60_000)))
        lines.append((name, rng.choice((1, 2, 3, 5, 10, rng.randint(1, 40))), price))
    subtotal = sum(quantity * price for _, quantity, price in lines)
    tax = subtotal * rng.choice((5, 7, 8, 10, 19, 20, 21, 22, 25)) // 100
    return Sheet(
        kind=kind,
        language=language,
        vendor=vendor,
        customer=customer,
        currency=currency,
        number=_number(rng, issued.year),
        issued=issued,
        ordered=issued - timedelta(days=rng.randint(2, 40)),
        due=issued + timedelta(days=rng.choice((7, 10, 14, 30, 45, 60))),
        lines=tuple(lines),
        subtotal=subtotal,
        tax=tax,
        total=subtotal + tax,
    )


def _number(rng: random.Random, year: int) -> str:
    serial = rng.randint(10, 99_999)
    return rng.choice(
        (f"{serial}", f"{year}-{serial % 1000}", f"{rng.choice('ABFKRX')}{serial}", f"{serial:05d}")
    )
