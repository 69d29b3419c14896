"""Instructor: Pydantic models as answers, in its modes for OpenAI's API."""
# /// script
# dependencies = ["instructor==1.17.0"]
# ///

from __future__ import annotations

from typing import Any

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from service import API, INVOICE, KEY, MODEL, run_checks

MESSAGES: Any = [
    {"role": "user", "content": f"Extract vendor, date, total and currency as JSON.\n\n{INVOICE}"}
]


class Invoice(BaseModel):
    vendor: str = Field(max_length=40)
    total: str = Field(max_length=20)
    currency: str = Field(max_length=3)


def _check(mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=API, api_key=KEY, max_retries=0, timeout=120), mode=mode)
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, response_model=Invoice, max_retries=0
    )
    assert isinstance(answer, Invoice)


def check_tools() -> None:
    _check(instructor.Mode.TOOLS)


def check_json_schema() -> None:
    _check(instructor.Mode.JSON_SCHEMA)


def check_tools_strict() -> None:
    _check(instructor.Mode.TOOLS_STRICT)


def check_responses_tools() -> None:
    client: Any = instructor.from_openai(
        OpenAI(base_url=API, api_key=KEY, max_retries=0, timeout=120), mode=instructor.Mode.RESPONSES_TOOLS
    )
    answer = client.responses.create(model=MODEL, input=MESSAGES, response_model=Invoice, max_retries=0)
    assert isinstance(answer, Invoice)


def check_partial_answers() -> None:
    client: Any = instructor.from_openai(
        OpenAI(base_url=API, api_key=KEY, max_retries=0, timeout=120), mode=instructor.Mode.JSON_SCHEMA
    )
    pieces = list(
        client.chat.completions.create_partial(model=MODEL, messages=MESSAGES, response_model=Invoice)
    )
    assert pieces[-1].vendor is not None


if __name__ == "__main__":
    run_checks(globals())
