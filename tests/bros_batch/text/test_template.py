"""Prompt templates: places, braces, missing fields, and bounds."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bros_batch.request_error import RequestError
from bros_batch.text.template import MAX_PLACES, MAX_PROMPT_CHARS, MAX_TEMPLATE_CHARS, parse_template


def test_documents_fill_a_template() -> None:
    document = {"text": "T {title}", "title": None, "my list": [1, "ä"], "n": 3}
    template = parse_template('Sum {text}|{ title }|{my list}|{n}|{{text}}|{"json": 1}|{}')
    assert template.render(document, 1) == 'Sum T {title}||[1, "ä"]|3|{text}|{"json": 1}|{}'
    assert template.fields == ["text", "title", "my list", "n"]


def test_the_error_for_a_missing_field_names_line_and_fields() -> None:
    with pytest.raises(RequestError, match=r"Row 7.*'title'.*text") as caught:
        parse_template("{text} {title}").render({"text": "x"}, 7)
    assert caught.value.param == "title"


@pytest.mark.parametrize(
    "name", ["Amount (EUR)", "Größe / cm", "% of total", "a.b-c", "E-Mail: private", "数量"]
)
def test_a_place_may_name_any_column(name: str) -> None:
    template = parse_template(f"Vendor: {{{name}}}")
    assert template.fields == [name]
    assert template.render({name: 12.5}, 1) == "Vendor: 12.5"


@pytest.mark.parametrize(
    "text",
    [
        'Answer {"total": {"amount": 1, "currency": "EUR"}}',
        '{\n  "vendor": "..."\n}',
        "{}{ }}} {",
        "}}",
        "a { b",
    ],
)
def test_braces_around_anything_else_are_text(text: str) -> None:
    template = parse_template(text)
    assert template.fields == []
    assert template.render({}, 1) == text


def test_doubled_braces_stand_for_single_ones() -> None:
    assert parse_template("{{a}} {{{b}}}").render({"b": 1}, 1) == "{a} {1}"


def pieces_of(source: str) -> list[str | tuple[str]]:
    """The pieces of a template, read character by character; a name is in a tuple."""
    pieces: list[str | tuple[str]] = []
    at = num_open = 0
    while at < len(source):
        end = at + 1
        while end < len(source) and source[end] not in '{}"\r\n':
            end += 1
        name = source[at + 1 : end]
        if source.startswith("{{", at) or (source.startswith("}}", at) and num_open):
            num_open += 1 if source[at] == "{" else -1
            pieces.append(source[at])
            at += 2
        elif source[at] == "{" and source[end : end + 1] == "}" and name.strip():
            pieces.append((name.strip(),))
            at = end + 1
        else:
            width = 2 if source.startswith("}}", at) else 1
            pieces.append(source[at : at + width])
            at += width
    return pieces


@settings(max_examples=500)
@given(st.text(alphabet='{}ab "\n', max_size=40))
def test_a_template_is_parsed_as_character_by_character(source: str) -> None:
    pieces = pieces_of(source)
    template = parse_template(source)
    assert template.names == tuple(piece[0] for piece in pieces if isinstance(piece, tuple))
    document = dict.fromkeys(template.fields, "<value>")
    expected = "".join("<value>" if isinstance(piece, tuple) else piece for piece in pieces)
    assert template.render(document, 1) == expected


@pytest.mark.timeout(60)  # each takes milliseconds; a quadratic parser would need hours for all of them
@pytest.mark.parametrize(
    "piece",
    [
        "{a",
        "{a ",
        "{",
        "}",
        "{{",
        "}}",
        "{ ",
        " ",
        "{a\n",
        '{"',
        "{}",
        "{ }",
        "{{a",
        "}{",
        "{{}",
        "{{}}",
        "}}{{",
    ],
)
def test_a_long_template_is_parsed_in_one_pass(piece: str) -> None:
    for filling in (" ", "a", "{", "}"):
        start = piece * (MAX_TEMPLATE_CHARS // 2 // len(piece))
        source = start + filling * (MAX_TEMPLATE_CHARS - len(start) - 2) + "x}"
        for variant in (source, source[::-1]):
            with contextlib.suppress(RequestError):  # for too many places
                parse_template(variant)


def test_a_template_is_parsed_once_for_all_lines() -> None:
    source = "Read: {text}"
    assert parse_template(source) is parse_template("".join(["Read: ", "{text}"]))


def test_a_template_has_bounds() -> None:
    with pytest.raises(RequestError, match="400,004 characters; 200,000 are allowed"):
        parse_template("{a" + " " * 400_000 + "x}")
    parse_template("x" * MAX_TEMPLATE_CHARS)
    parse_template("{a}" * MAX_PLACES)
    with pytest.raises(RequestError, match="1,001 places for fields; 1,000 are allowed"):
        parse_template("{a}" * (MAX_PLACES + 1))


def test_a_prompt_that_repeats_a_long_field_has_a_bound() -> None:
    template = parse_template("{a}" * MAX_PLACES)
    with pytest.raises(RequestError, match=r"Row 3: the prompt has .* characters") as caught:
        template.render({"a": "x" * (MAX_PROMPT_CHARS // MAX_PLACES + 1)}, 3)
    assert caught.value.param == "prompt"


def test_a_name_may_be_a_path_into_nested_values() -> None:
    document = {"order": {"id": 7, "a.b": [{"c": "x"}]}, "order.total": 5, "items": ["a", "b"]}
    template = parse_template("{order.id} {order.total} {order.a.b.0.c} {items.1}")
    assert template.render(document, 1) == "7 5 x b"
    for name in ("order.ids", "items.2", "items.x", "order.id.x"):
        with pytest.raises(RequestError, match=f"uses the field '{name}'"):
            parse_template(f"{{{name}}}").render(document, 1)


def test_a_name_that_no_template_can_contain_is_written_without_its_odd_characters() -> None:
    document = {"Amount\n(EUR)": 1, 'Size 5"': 2, "a{b}": 3}
    assert parse_template("{Amount (EUR)} {Size 5} {ab}").render(document, 1) == "1 2 3"


def test_the_closest_name_is_suggested() -> None:
    with pytest.raises(RequestError, match="Did you mean 'Amount'"):
        parse_template("{amonut}").render({"Vendor": 1, "Amount": 2}, 1)
