"""Columns to add: what the model is told of them."""

from __future__ import annotations

from bros_batch.documents.added_columns import column, typed_column


def test_that_a_column_is_text_goes_without_saying() -> None:
    wanted = column("vendor: who issued it")
    assert wanted.instruction == "- vendor: who issued it"
    assert column("vendor: text, who issued it") == wanted
    assert typed_column("vendor", "text", "who issued it") == wanted
    assert column("vendor").instruction == "- vendor"
    assert column("vendor: text?").instruction == "- vendor (text, or null if there is none)"
