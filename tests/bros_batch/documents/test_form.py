"""The form of a line and the id of a document."""

from __future__ import annotations

import pytest

from bros_batch.documents.form import BATCH, DOCUMENT, document_id, form_of
from bros_batch.request_error import RequestError

REQUEST = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}
PAGE = {"url": "https://example.org", "title": "A page", "body": "Its text."}


@pytest.mark.parametrize(
    ("line", "fields", "form"),
    [
        (REQUEST, [], BATCH),
        (REQUEST, ["text"], BATCH),
        (PAGE, ["body"], DOCUMENT),
        (PAGE, [], DOCUMENT),
        ({**PAGE, "body": {"html": "<p>"}}, ["body"], DOCUMENT),
        ({**PAGE, "body": {"html": "<p>"}}, ["title", "body"], DOCUMENT),
        ({"body": {"messages": []}, "custom_id": "a"}, [], DOCUMENT),
        ({"text": "x"}, ["text"], DOCUMENT),
    ],
)
def test_a_line_that_the_prompt_fits_is_a_document(line: dict, fields: list[str], form: str) -> None:
    assert form_of(line, fields) == form


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", "a"),
        (7, "7"),
        (1.0, "1"),
        (-2.0, "-2"),
        (2.0**53, str(2**53)),
        (10**30, str(10**30)),
        (None, None),
        ("", None),
    ],
)
def test_ids_of_pandas_and_of_people_are_accepted(value: object, expected: str | None) -> None:
    assert document_id({"id": value}) == expected


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.5, "1.5"), (1e300, "1e+300"), (True, "true"), ([1], "an array"), ({}, "an object")],
)
def test_a_value_that_is_no_id_is_named(value: object, shown: str) -> None:
    with pytest.raises(RequestError, match="'id' must be a string or a whole number, not ") as caught:
        document_id({"id": value})
    assert caught.value.param == "id"
    assert shown in caught.value.message
