"""Columns to add: what the model is told of them."""

from __future__ import annotations

import pytest

from bros_batch.documents.added_columns import column, typed_column
from bros_batch.request_error import RequestError


def test_that_a_column_is_text_goes_without_saying() -> None:
    wanted = column("vendor: who issued it")
    assert wanted.instruction == "- vendor: who issued it"
    assert column("vendor: text, who issued it") == wanted
    assert typed_column("vendor", "text", "who issued it") == wanted
    assert column("vendor").instruction == "- vendor"
    assert column("vendor: text?").instruction == "- vendor (text, or null if there is none)"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("nummer", "number"),
        ("float", "number"),
        ("Number?, with tax", "number"),
        ("int", "integer"),
        ("str, who issued it", "text"),
        ("bool", "boolean"),
        ("datetime", "date"),
        ("list of strings", "list of text"),
    ],
)
def test_a_type_of_another_name_is_no_meaning(words: str, meant: str) -> None:
    with pytest.raises(RequestError, match=f"did you mean {meant}\\?") as error:
        column(f"a: {words}")
    assert f'write "a: text, {words}"' in error.value.message
    assert column(f"a: text, {words}").instruction == f"- a: {words}"


@pytest.mark.parametrize(
    "words", ["data", "update", "name, as written", "float of the ship", "list of names"]
)
def test_a_meaning_of_one_word_remains_one(words: str) -> None:
    assert column(f"a: {words}").instruction == f"- a: {words}"
