"""The document generator: reproducible, consistent with its answers, varied, and with held-out vendors."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from bros_batch.demo import prompts, vocabulary
from bros_batch.demo.documents import HELD_OUT_SEED, Document, generate_documents, is_held_out_vendor

COUNT = 1500


def sample(seed: int = 1) -> list[Document]:
    return list(generate_documents(COUNT, seed))


def test_the_same_seed_gives_the_same_documents_for_every_count() -> None:
    assert list(generate_documents(40, 3)) == list(generate_documents(60, 3))[:40]
    assert [document.text for document in generate_documents(40, 3)] != [
        document.text for document in generate_documents(40, 4)
    ]


def test_ids_are_unique() -> None:
    assert len({document.document_id for document in sample()}) == COUNT


def test_names_occur_in_the_text() -> None:
    for document in sample():
        assert document.truth["vendor"] in document.text
        assert document.issuer in document.text
        assert (document.issuer == document.truth["vendor"]) == (document.kind != "purchase order")


def test_total_can_be_read_from_the_text() -> None:
    for document in sample():
        # Without separators, the digits of the total occur in the text unchanged.
        digits = document.truth["total"].replace(".", "")
        assert digits in re.sub(r"(?<=\d)[ .,'](?=\d)", "", document.text), document.text
        decimals = 0 if document.truth["currency"] == "JPY" else 2
        assert re.fullmatch(r"\d+" + rf"\.\d{{{decimals}}}" * (decimals > 0), document.truth["total"])


def test_currency_can_be_read_from_the_text() -> None:
    for document in sample():
        code = document.truth["currency"]
        symbol = vocabulary.CURRENCIES[code]
        assert code in document.text or (symbol and symbol in document.text), document.text


def test_date_can_be_read_from_the_text() -> None:
    for document in sample():
        year, month, day = document.truth["date"].split("-")
        separator = vocabulary.DATE_SEPARATORS[document.language]
        month_name = vocabulary.MONTHS[document.language][int(month) - 1]
        forms = (
            document.truth["date"],
            f"{day}{separator}{month}{separator}{year}",
            f"{int(day)} {month_name} {year}",
            f"{int(day)}. {month_name} {year}",
            f"{int(day)} de {month_name} de {year}",
            f"{month_name} {int(day)}, {year}",
        )
        assert any(form in document.text for form in forms), document.text


def test_documents_vary() -> None:
    documents = sample()
    assert len({document.text for document in documents}) == COUNT
    assert {document.kind for document in documents} == set(vocabulary.KINDS)
    assert {document.language for document in documents} == set(vocabulary.LANGUAGES)
    assert {document.truth["currency"] for document in documents} == set(vocabulary.CURRENCIES)
    vendors = Counter(document.truth["vendor"] for document in documents)
    assert len(vendors) > 0.9 * COUNT
    assert any("&" in vendor for vendor in vendors)
    assert any(re.search(r"\d", vendor) for vendor in vendors)
    first_words = {document.text.split()[0] for document in documents}
    assert len(first_words) > 100


def test_documents_are_short() -> None:
    lengths = [len(document.text) for document in sample()]
    assert max(lengths) < 700


def test_held_out_vendors_are_never_in_training() -> None:
    training = {document.truth["vendor"] for document in sample(seed=1)}
    held_out = {document.truth["vendor"] for document in sample(seed=HELD_OUT_SEED)}
    assert not training & held_out
    assert all(is_held_out_vendor(vendor) for vendor in held_out)
    assert not any(is_held_out_vendor(vendor) for vendor in training)


def test_labels_of_true_fields_are_not_labels_of_distractors() -> None:
    for labels in vocabulary.LABELS.values():
        for field in ("vendor", "date", "total"):
            others = {label for name, values in labels.items() if name != field for label in values}
            assert not others & set(labels[field])


def test_questions_have_true_answers() -> None:
    document = next(generate_documents(1, 5))
    pairs = prompts.questions(document)
    assert pairs == prompts.questions(document)
    assert len(pairs) == len(prompts.QUESTIONS)
    answers = " ".join(answer for _, answer in pairs)
    for value in (*document.truth.values(), document.issuer, document.kind):
        assert value in answers


def test_questions_are_paraphrased() -> None:
    asked = {question for document in sample() for question, _ in prompts.questions(document)}
    assert asked == {question for wordings in prompts.QUESTIONS.values() for question in wordings}


@pytest.mark.parametrize(
    "template", [prompts.EXTRACTION_PROMPT, prompts.CHAT_PROMPT, prompts.CHAT_PROMPT_DOCUMENT_FIRST]
)
def test_prompts_contain_the_document(template: str) -> None:
    assert "Rechnung {1}" in template.format(question="Which currency?", text="Rechnung {1}")


def test_the_generator_needs_no_torch() -> None:
    code = (
        "import sys, bros_batch.demo.documents\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
