"""What `--schema` accepts, and what it says about schemas that cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bros_batch.client.answer_schema import response_format
from bros_batch.client.bad_input import BadInput
from cli.chat import _response_format
from tests.schema_matching import accepts, matcher_of

MODULE = """
from typing import Callable
from pydantic import BaseModel

class Line(BaseModel):
    text: str
    extra: dict[str, int] = {}

class Invoice(BaseModel):
    vendor: str
    total: float | None = None
    lines: list[Line] = []

class Unusable(BaseModel):
    callback: Callable[[], int]

class Unique(BaseModel):
    names: set[str]

number = 5
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A current directory with a module of models."""
    (tmp_path / "schema_option_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("schema_option_models", None)


def message(source):
    with pytest.raises(BadInput) as raised:
        response_format(source)
    return str(raised.value)


def test_a_file_and_a_model_become_a_response_format(directory):
    schema = {"type": "object", "properties": {"vendor": {"type": "string"}}}
    (directory / "in voice.json").write_text(json.dumps(schema))
    found = response_format("in voice.json")
    assert found == {
        "type": "json_schema",
        "json_schema": {"name": "in_voice", "schema": schema, "strict": True},
    }
    found = response_format("schema_option_models:Invoice")["json_schema"]
    assert found["name"] == "Invoice"
    assert list(found["schema"]["properties"]) == ["vendor", "total", "lines"]
    assert found["schema"]["additionalProperties"] is False
    assert found["schema"]["$defs"]["Line"]["additionalProperties"] is False
    assert found["schema"]["$defs"]["Line"]["properties"]["extra"]["additionalProperties"] == {
        "type": "integer"
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "x.json is not JSON: Expecting property name"),
        ("[1]", "x.json does not hold a JSON schema, which is an object."),
        ('{"not": {}}', "The schema of x.json cannot be used. 'not' is not supported (at #)."),
        (
            '{"properties": {"a": {"type": "string", "pattern": "(?=a)"}}}',
            "The schema of x.json cannot be used. 'pattern' is not supported: look-around, including look-ahead and "
            "look-behind, is not supported (at #/properties/a).",
        ),
        (
            '{"properties": {"a": {"oneOf": [{"type": "object"}, {"type": "object"}]}}}',
            "'oneOf' is supported only if its schemas exclude each other",
        ),
        (
            '{"properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"], "additionalProperties": false, '
            '"$defs": {"a": {"type": "number", "minimum": 3, "maximum": 2}}}',
            "No value fits the schema: minimum (3) is greater than maximum (2) (at #/$defs/a).",
        ),
    ],
)
def test_a_file_without_a_usable_schema(directory, text, problem):
    (directory / "x.json").write_text(text)
    assert problem in message("x.json")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("missing.json", "missing.json: No such file or directory."),
        ("no_such_module:Invoice", "Cannot import no_such_module: ModuleNotFoundError"),
        ("schema_option_models:Order", "schema_option_models has no pydantic model named Order."),
        ("schema_option_models:number", "schema_option_models has no pydantic model named number."),
        ("schema_option_models:Unusable", "schema_option_models:Unusable has no JSON schema: "),
        (
            "schema_option_models:Unique",
            "'uniqueItems' is supported only for arrays of at most 5 values, listed by 'enum' (at #/properties/names).",
        ),
    ],
)
def test_a_model_or_file_that_cannot_be_used(directory, source, problem):
    assert problem in message(source)


def test_the_answers_of_a_chat_have_no_white_space_between_fields(directory):
    """Models that may write line breaks there fill the screen with them."""
    compact, spaced = '{"vendor":"A B","lines":[]}', '{"vendor":"A B",\n\n"lines":[]}'
    in_chats = _response_format("schema_option_models:Invoice")["json_schema"]["schema"]
    in_jobs = response_format("schema_option_models:Invoice")["json_schema"]["schema"]
    for schema, may_have_lines in ((in_chats, False), (in_jobs, True)):
        assert accepts(matcher_of(schema), compact)
        assert accepts(matcher_of(schema), spaced) is may_have_lines


def test_a_schema_is_checked_before_the_upload(directory):
    (directory / "docs.jsonl").write_text('{"text": "x"}\n')
    (directory / "x.json").write_text('{"not": {}}')
    # Nothing listens there: a request would fail with another exit code.
    env = {
        **os.environ,
        "BROS_URL": "http://127.0.0.1:9",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [
        sys.executable,
        "-m",
        "cli",
        "submit",
        "docs.jsonl",
        "--prompt",
        "{text}",
        "--schema",
        "x.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "bros-batch: The schema of x.json cannot be used. 'not' is not supported (at #).\n"
