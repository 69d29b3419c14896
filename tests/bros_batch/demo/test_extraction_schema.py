"""The schema of the demo's answers admits every true answer."""

from __future__ import annotations

from itertools import islice

from bros_batch.demo.documents import FIELDS, HELD_OUT_SEED, generate_documents
from bros_batch.demo.prompts import EXTRACTION_SCHEMA, answer_json
from tests.schema_matching import accepts, matcher_of


def test_the_schema_of_the_demo_admits_every_true_answer() -> None:
    assert list(EXTRACTION_SCHEMA["properties"]) == list(FIELDS)
    matcher = matcher_of(EXTRACTION_SCHEMA)
    assert matcher is not None
    for document in islice(generate_documents(500, HELD_OUT_SEED), 500):
        assert accepts(matcher, answer_json(document)), answer_json(document)
    assert accepts(matcher, '{"vendor": null, "date": null, "total": null, "currency": null}')
    assert not accepts(matcher, '{"vendor": "x", "date": "2026-13-01", "total": "1.5", "currency": "EURO"}')
