"""Answers in the shape of a pydantic model, and tables without rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pandas
import polars
import pyarrow
from pydantic import BaseModel, Field

import bros_batch
from bros_batch.python.answers import Answers, with_answers
from bros_batch.python.sources import source_of
from bros_batch.python.submission import Work


class Invoice(BaseModel):
    vendor: str
    total: float = Field(ge=0)


ROWS = [
    {"row": 1, "answer": {"vendor": "A", "total": 1}, "error": None},
    {"row": 2, "answer": {"vendor": "B", "total": -2.5}, "error": None},
    {
        "row": 3,
        "answer": None,
        "error": {"code": "output_truncated", "message": "The answer was cut."},
        "raw_answer": '{"vendor": "C',
    },
]
INVALID = "The answer is not a valid Invoice: total: Input should be greater than or equal to 0"


def joined(table: Any) -> Any:
    """The table with the answers of ROWS."""
    source, work = source_of(table), Work.of_arguments("{text}", Invoice, None, None, {})
    assert len(list(source.table())) == 4
    lines = (json.dumps(row).encode() for row in ROWS)
    model = work.asked.model if source.is_plain else None
    return with_answers(source, work.asked, Answers.of_rows(lines, source.num_rows(), model))


def test_dicts_and_texts_get_objects() -> None:
    first = Invoice(vendor="A", total=1)
    assert joined(["a", "b", "c", "d"]) == [first, None, None, None]
    rows: Iterator[dict[str, str]] = ({"text": text} for text in "abcd")
    assert joined(rows) == [
        {"text": "a", "answer": first, "_raw_answer": None, "_error": None},
        {
            "text": "b",
            "answer": None,
            "_raw_answer": {"vendor": "B", "total": -2.5},
            "_error": INVALID,
        },
        {"text": "c", "answer": None, "_raw_answer": '{"vendor": "C', "_error": "The answer was cut."},
        {"text": "d", "answer": None, "_raw_answer": None, "_error": "The row was not computed."},
    ]


def test_frames_get_a_column_for_each_property() -> None:
    columns = {"text": ["a", "b", "c", "d"]}
    wanted = {
        **columns,
        "vendor": ["A", "B", None, None],
        "total": [1.0, -2.5, None, None],
        "_raw_answer": [None, None, '{"vendor": "C', None],
        "_error": [None, None, "The answer was cut.", "The row was not computed."],
    }
    assert joined(polars.DataFrame(columns)).to_dict(as_series=False) == wanted
    assert joined(pyarrow.table(columns)).to_pydict() == wanted
    frame = joined(pandas.DataFrame(columns))
    assert frame["total"].tolist()[:2] == [1.0, -2.5] and frame["total"].isna().tolist()[2:] == [True, True]
    assert list(frame) == list(wanted)


def test_a_table_without_rows_gets_the_columns() -> None:
    client = bros_batch.Client("http://127.0.0.1:9")
    assert client.map([], "{text}") == []
    assert list(client.map(pandas.DataFrame({"text": []}), "{text}", schema=Invoice)) == [
        "text",
        "vendor",
        "total",
    ]
    found = client.ask(polars.DataFrame({"text": []}), {"urgent": "Is it?"})
    assert found.columns == ["text", "urgent", "urgent_probability"]
