"""Prompt templates: places, braces, and missing fields."""

from __future__ import annotations

import pytest

from bros_batch.request_error import RequestError
from bros_batch.text.template import render_template, template_fields


def test_documents_fill_a_template() -> None:
    document = {"text": "T {title}", "title": None, "my list": [1, "ä"], "n": 3}
    template = 'Sum {text}|{ title }|{my list}|{n}|{{text}}|{"json": 1}|{}'
    assert render_template(template, document, 1) == 'Sum T {title}||[1, "ä"]|3|{text}|{"json": 1}|{}'
    assert template_fields(template) == ["text", "title", "my list", "n"]


def test_the_error_for_a_missing_field_names_line_and_fields() -> None:
    with pytest.raises(RequestError, match=r"Line 7.*'title'.*text") as caught:
        render_template("{text} {title}", {"text": "x"}, 7)
    assert caught.value.param == "title"
