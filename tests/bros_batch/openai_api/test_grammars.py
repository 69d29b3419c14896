"""The three ways in which clients ask for the shape of an answer, and the mistakes in them."""

import enum
import json
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from llguidance import LLMatcher, LLTokenizer
from pydantic import BaseModel, Field

import bros_batch.demo
from bros_batch.openai_api.chat_request import parse_chat
from bros_batch.openai_api.completion_request import parse_completion
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS, COMPLETIONS
from bros_batch.openai_api.grammars import literal_regex
from bros_batch.openai_api.sampling import sampling_of
from bros_batch.openai_api.sampling_defaults import SamplingDefaults
from bros_batch.request_error import RequestError
from engine.wire.json_schemas import GRAMMAR_OPTIONS
from engine.wire.request_terms import MAX_GRAMMAR_CHARS, Grammar

TOKENIZER = LLTokenizer((Path(bros_batch.demo.__file__).parent / "model" / "tokenizer.json").read_text())
COLORS = '{"type":"object","properties":{"color":{"enum":["red","blue"]}},"required":["color"]}'
SQL = """
root ::= "SELECT " column " FROM t"
column ::= "a" | "b" [0-9]+
"""


def grammar(endpoint=CHAT_COMPLETIONS, **fields):
    prompt = (
        {"messages": [{"role": "user", "content": "x"}]} if endpoint == CHAT_COMPLETIONS else {"prompt": "x"}
    )
    parse = parse_chat if endpoint == CHAT_COMPLETIONS else parse_completion
    request = parse(json.dumps({"model": "m", **prompt, **fields}))
    return sampling_of(request, SamplingDefaults()).grammar


def json_schema(schema, **fields):
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **fields}}


def error(**fields):
    with pytest.raises(RequestError) as raised:
        grammar(**fields)
    return raised.value.param, raised.value.message


def accepts(grammar, text):
    make = {
        "json_schema": LLMatcher.grammar_from_json_schema,
        "regex": LLMatcher.grammar_from_regex,
        "lark": LLMatcher.grammar_from_lark,
    }[grammar.kind]
    matcher = LLMatcher(TOKENIZER, make(grammar.text))
    assert not matcher.is_error(), matcher.get_error()
    tokens = TOKENIZER.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("endpoint", [CHAT_COMPLETIONS, COMPLETIONS])
@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": json_schema(json.loads(COLORS), strict=True, description="d")},
        {"response_format": json_schema(json.loads(COLORS), strict=False)},
        {"response_format": {"type": "json_object", "schema": json.loads(COLORS)}},
        {"structured_outputs": {"json": json.loads(COLORS)}},
        {"structured_outputs": {"json": COLORS, "regex": None, "disable_any_whitespace": False}},
        {"guided_json": json.loads(COLORS)},
        {"guided_json": COLORS, "response_format": {"type": "text"}},
    ],
)
def test_every_form_of_a_schema_gives_the_same_grammar(endpoint, fields):
    found = grammar(endpoint, **fields)
    assert found.kind == "json_schema"
    assert msgspec.json.decode(found.text) == {**json.loads(COLORS), "x-guidance": GRAMMAR_OPTIONS}
    assert accepts(found, '{"color": "red"}')
    assert not accepts(found, '{"color": "green"}')


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": json_schema(None)},
        {"structured_outputs": {"json_object": True}},
    ],
)
def test_any_object_is_the_least_shape_of_json(fields):
    found = grammar(**fields)
    assert accepts(found, '{"a": [1, null, {"b": "\\n"}]}')
    assert not accepts(found, "[1]")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "choice": None, "whitespace_pattern": None}},
        {"guided_json": None, "guided_regex": "", "guided_choice": None},
    ],
)
def test_fields_that_ask_for_no_shape_give_no_grammar(fields):
    assert grammar(**fields) is None


def test_white_space_can_be_forbidden():
    found = grammar(structured_outputs={"json": COLORS, "disable_any_whitespace": True})
    assert accepts(found, '{"color":"red"}')
    assert not accepts(found, '{"color": "red"}')


def test_white_space_ends():
    """A model that has lost the thread would otherwise write line breaks until its output limit."""
    found = grammar(structured_outputs={"json": COLORS})
    for text in ('{"color": "red"}', '{\n        "color": "red"\n}', '{"color":' + 20 * " " + '"red"}'):
        assert accepts(found, text)
    assert not accepts(found, '{"color":' + 21 * " " + '"red"}')


@pytest.mark.parametrize("field", ["guided_regex", "structured_outputs"])
def test_a_regular_expression_is_passed_on(field):
    found = grammar(**{field: "[0-9]{3}" if field == "guided_regex" else {"regex": "[0-9]{3}"}})
    assert found == Grammar("regex", "[0-9]{3}")


@pytest.mark.parametrize(
    "choices",
    [
        ["yes", "no"],
        ["a", "ab"],
        ["a.c", "(x|y)", "50% & more - ~ #1/2", "tab\there", "line\nbreak", "é 😀", '"q"'],
    ],
)
def test_a_choice_allows_its_strings_and_no_other(choices):
    for found in (grammar(guided_choice=choices), grammar(structured_outputs={"choice": choices})):
        assert all(accepts(found, choice) for choice in choices)
        assert not any(accepts(found, choice + "x") for choice in choices)
    assert not accepts(grammar(guided_choice=["a.c"]), "abc")


def test_every_printable_character_is_literal_in_a_choice():
    for code in range(32, 127):
        found = Grammar("regex", literal_regex(f"a{chr(code)}b"))
        assert accepts(found, f"a{chr(code)}b")
        assert not accepts(found, "aa")


def test_grammars_in_lark_and_gbnf_are_served():
    lark = 'start: "SELECT " /[ab]/'
    assert grammar(guided_grammar=lark) == Grammar("lark", lark)
    found = grammar(structured_outputs={"grammar": SQL})
    assert accepts(found, "SELECT b12 FROM t")
    assert not accepts(found, "SELECT c FROM t")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        (
            {"response_format": "json"},
            "response_format.type",
            "must be one of text, json_object, json_schema",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "an object with a 'schema'",
        ),
        (
            {"response_format": json_schema([])},
            "response_format.json_schema.schema",
            "must be a JSON schema, an object",
        ),
        (
            {"response_format": json_schema({}, strict="yes")},
            "response_format.json_schema.strict",
            "true or false",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": 5}}},
            "response_format.json_schema.name",
            "must be a string",
        ),
        (
            {"response_format": json_schema({"properties": {"a": {"not": {}}}})},
            "response_format.json_schema.schema",
            "is not a usable JSON schema: 'not' is not supported (at #/properties/a).",
        ),
        ({"structured_outputs": []}, None, None),
        ({"structured_outputs": [1]}, "structured_outputs", "must be an object"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "is not valid JSON"),
        (
            {"structured_outputs": {"json": [1]}},
            "structured_outputs.json",
            "an object, or its JSON as a string",
        ),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object", "true or false"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex", "must be a string"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "a list of strings"),
        (
            {"structured_outputs": {"whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
            "not supported",
        ),
        (
            {"structured_outputs": {"structural_tag": "{}"}},
            "structured_outputs.structural_tag",
            "not supported",
        ),
        ({"guided_choice": ["a", 1]}, "guided_choice", "a list of strings"),
        ({"guided_choice": ["a", ""]}, "guided_choice", "none of them empty"),
        (
            {"guided_grammar": "root ::= x"},
            "guided_grammar",
            "not a valid grammar in GBNF: Rule 'x' not found",
        ),
        ({"guided_grammar": "root ::= " + "( " * 5000}, "guided_grammar", "not a valid grammar in GBNF"),
        ({"guided_grammar": "root ::= x" + " " * 20_000}, "guided_grammar", "longer than 16,384"),
        ({"guided_regex": "a" * (MAX_GRAMMAR_CHARS + 1)}, "guided_regex", "longer than 262,144 characters"),
        (
            {"guided_json": {"enum": ["a" * MAX_GRAMMAR_CHARS]}},
            "guided_json",
            "longer than 262,144 characters",
        ),
        (
            {"guided_regex": "a", "structured_outputs": {"choice": ["a"]}},
            "guided_regex",
            "both 'structured_outputs.choice' and 'guided_regex' ask for one",
        ),
        (
            {"structured_outputs": {"json": {}, "regex": "a"}},
            "structured_outputs.regex",
            "both 'structured_outputs.json' and 'structured_outputs.regex' ask for one",
        ),
        (
            {"response_format": {"type": "json_object"}, "guided_json": {}},
            "guided_json",
            "both 'response_format' and 'guided_json' ask for one",
        ),
    ],
)
def test_a_mistake_is_named_with_its_field(fields, param, message):
    if param is None:
        assert grammar(**fields) is None
        return
    found, text = error(**fields)
    assert found == param
    assert message in text


def test_a_schema_too_deep_for_a_parser_is_an_error_of_its_field():
    param, message = error(structured_outputs={"json": '{"enum": [' + "[" * 5000 + "]" * 5000 + "]}"})
    assert param == "structured_outputs.json"
    assert "is not valid JSON" in message


class Status(enum.StrEnum):
    OPEN = "open"
    DONE = "done"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=0, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str] = []


class Task(BaseModel):
    """A model with what people use in theirs: nesting, enums, optional fields, unions, recursion and constraints."""

    title: str = Field(min_length=1, max_length=80, description="What to do")
    status: Status
    due: str | None = None
    score: float = Field(gt=0, lt=1)
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]]
    parent: "Task | None" = None
    pair: tuple[int, str]
    counts: dict[str, int] = {}


def test_the_schema_of_a_pydantic_model_admits_its_instances():
    found = grammar(response_format=json_schema(Task.model_json_schema()))
    child = Task(title="b", status=Status.DONE, score=0.25, pets=[], pair=(1, "x"))
    task = Task(
        title="a",
        status=Status.OPEN,
        due="now",
        score=0.5,
        pets=[Cat(kind="cat", lives=9), Dog(kind="dog", tricks=["sit"])],
        parent=child,
        pair=(-3, "é"),
        counts={"x": 1},
    )
    assert accepts(found, task.model_dump_json())
    assert accepts(found, task.model_dump_json(indent=2))
    for wrong in ('"status":"late"', '"score":1.5', '"title":""', '"pair":[1,2]', '"kind":"cow"'):
        name = wrong.split(":")[0]
        text = task.model_dump_json()
        start = text.index(name)
        end = text.index(",", start) if name != '"pair"' else text.index("]", start) + 1
        assert not accepts(found, text[:start] + wrong + text[end:]), wrong
