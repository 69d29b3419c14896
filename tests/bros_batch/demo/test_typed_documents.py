"""Documents as people type them: what their truth says is in the text, and what it lacks is not."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter

from bros_batch.demo import off_topic, prompts, vocabulary
from bros_batch.demo.documents import (
    FIELDS,
    HELD_OUT_SEED,
    Document,
    generate_documents,
    generate_typed_documents,
    is_held_out_vendor,
)

COUNT = 1500
WORDS = {"EUR": "euros", "USD": "dollars", "GBP": "pounds", "JPY": "yen"}


def sample(seed: int = 1) -> list[Document]:
    return list(generate_typed_documents(COUNT, seed))


def currencies_in(text: str) -> set[str]:
    """The currencies that a text names by code, symbol or word."""
    found = set()
    for code, symbol in vocabulary.CURRENCIES.items():
        marks = [rf"\b{code}\b", rf"\b{WORDS[code]}\b" if code in WORDS else r"(?!)"]
        if symbol:
            marks.append(re.escape(symbol) if symbol in "€$£¥" else rf"(?<!\w){symbol}(?!\w)")
        if any(re.search(mark, text) for mark in marks):
            found.add(code)
    return found


def test_the_same_seed_gives_the_same_documents() -> None:
    assert list(generate_typed_documents(20, 3)) == list(generate_typed_documents(30, 3))[:20]


def test_stated_fields_can_be_read_from_the_text() -> None:
    for document in sample():
        truth = document.truth
        assert set(truth) <= set(FIELDS)
        assert truth
        if "vendor" in truth:
            assert truth["vendor"] in document.text
        if "total" in truth:
            digits = truth["total"].replace(".", "")
            plain = re.sub(r"(?<=\d)[ .,'](?=\d)", "", document.text)
            assert digits in plain or digits.removesuffix("00") in plain, document.text
        if "currency" in truth:
            assert truth["currency"] in currencies_in(document.text), document.text
        if "date" in truth:
            year = truth["date"][:4]
            assert year in document.text


def test_missing_fields_cannot_be_read_from_the_text() -> None:
    missing = Counter(field for document in sample() for field in FIELDS if field not in document.truth)
    assert all(missing[field] > COUNT / 10 for field in FIELDS)
    for document in sample():
        if "currency" not in document.truth:
            assert not currencies_in(document.text), document.text
        if "total" not in document.truth:
            assert "currency" not in document.truth


def test_answers_say_what_is_missing() -> None:
    truth = {"vendor": "ACME Ltd", "total": "12.50"}
    document = Document("x", "invoice", "en", "Invoice from ACME Ltd. Total: 12.50", truth, "ACME Ltd")
    assert json.loads(prompts.answer_json(document)) == {
        "vendor": "ACME Ltd",
        "date": None,
        "total": "12.50",
        "currency": None,
    }
    assert prompts.answer_about(document, "date") == "There is no date in this document."
    assert prompts.answer_about(document, "total") == "The total is 12.50."
    assert prompts.answer_about(document, "kind") == "This is an invoice."
    assert prompts.summary(document) == "This is an invoice from ACME Ltd, total 12.50."


def test_answers_are_true() -> None:
    rng = random.Random(5)
    for document in itertools.chain(sample()[:300], generate_documents(300, 1)):
        for _ in range(5):
            question, answer = prompts.exchange_about(document, rng)
            assert question
            if answer.startswith("{"):
                stated = {key: value for key, value in json.loads(answer).items() if value is not None}
                assert stated == document.truth
            elif answer.startswith("There is no"):
                topic = answer.split()[3]
                assert topic not in document.truth or (topic == "vendor" and not document.issuer)
            else:
                assert answer.endswith(".")


def test_held_out_vendors_are_never_in_training() -> None:
    training = {document.truth.get("vendor") for document in sample(seed=1)} - {None}
    held_out = {document.truth.get("vendor") for document in sample(seed=HELD_OUT_SEED)} - {None}
    assert not training & held_out
    assert all(is_held_out_vendor(vendor) for vendor in held_out if vendor)


def test_questions_off_topic_vary() -> None:
    rng = random.Random(1)
    assert len({off_topic.question_off_topic(rng) for _ in range(2000)}) > 1000
    assert len({off_topic.question_about_unread_part(rng) for _ in range(2000)}) > 150
    assert all(off_topic.prose(rng) for _ in range(100))
