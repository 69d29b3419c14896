"""Columns of data frames come out in Parquet files with the types that they had, value for value."""

from __future__ import annotations

import datetime
import io
from typing import Any

import msgspec
import pandas
import polars
import pyarrow
import pyarrow.parquet

from bros_batch.documents.readers.table import Row
from bros_batch.documents.writers.write_table import write_table
from bros_batch.python.sources import source_of

MOMENTS = ["2024-02-29 13:14:15.678900123", None, "1969-12-31 23:59:59.999999999"]


def written(frame: Any) -> pyarrow.Table:
    with source_of(frame).table() as table:
        rows = [
            msgspec.json.decode(msgspec.json.encode(row.document)) for row in table if isinstance(row, Row)
        ]
        columns, types = table.columns or [], table.types
    out = io.BytesIO()
    values = [[row[name] for name in columns] for row in rows]
    write_table("parquet", out, columns, lambda: iter(values), [types.get(name) for name in columns])
    return pyarrow.parquet.read_table(out)


def test_a_frame_of_pandas() -> None:
    frame = pandas.DataFrame({
        "size": pandas.Categorical(["large", None, "small"], ["small", "medium", "large"], ordered=True),
        "moment": pandas.to_datetime(MOMENTS),
        "zone": pandas.to_datetime(MOMENTS).tz_localize("Europe/Berlin"),
        "span": pandas.to_timedelta([1, None, -(10**15) - 1]),
        "maybe": pandas.array([1, None, 2], dtype="Int64"),
        "half": pandas.array([0.1, 2, None], dtype="float16"),
        "single": pandas.array([0.1, 2, None], dtype="float32"),
        "small": pandas.array([1, 2, 3], dtype="uint8"),
        "text": pandas.array(["a", None, ""], dtype="string"),
        "exact": pandas.array([1, None, 3], dtype=pandas.ArrowDtype(pyarrow.decimal128(9, 2))),
        "days": [datetime.date(2024, 2, 29), None, datetime.date(1, 1, 1)],
    })  # fmt: skip
    found = written(frame)
    file = io.BytesIO()
    frame.drop(columns=["days"]).to_parquet(file)
    assert found.drop_columns(["days"]).equals(pyarrow.parquet.read_table(file))
    assert found["size"].combine_chunks().dictionary.to_pylist() == ["small", "medium", "large"]
    assert found["days"].to_pylist() == [
        "2024-02-29",
        None,
        "0001-01-01",
    ]  # of objects, which may be anything


def test_a_frame_of_polars() -> None:
    frame = polars.DataFrame({
        "size": polars.Series(["large", None], dtype=polars.Enum(["small", "medium", "large"])),
        "kind": polars.Series(["a", "b"], dtype=polars.Categorical),
        "moment": polars.Series([1_709_212_455_678_900_123, None], dtype=polars.Datetime("ns", "UTC")),
        "span": polars.Series([1, None], dtype=polars.Duration("ns")),
        "time": polars.Series([1, 86_399_000_000_001], dtype=polars.Int64).cast(polars.Time),
        "exact": polars.Series([1, None], dtype=polars.Decimal(10, 2)),
        "bytes": [b"caf\xc3\xa9", b"\xff\x00"],
        "pair": polars.Series([[1, 2], [3, 4]], dtype=polars.Array(polars.Int8, 2)),
        "list": [[{"a": 1.5, "b": "x"}], []],
        "wide": polars.Series([2**100, None], dtype=polars.Int128),
    })  # fmt: skip
    found = written(frame)
    again = polars.DataFrame(found.select(frame.columns[:-1]))
    assert isinstance(again, polars.DataFrame)
    assert again["size"].cast(polars.String).to_list() == ["large", None]
    assert found["size"].combine_chunks().dictionary.to_pylist() == ["small", "medium", "large"]
    exact = [name for name in frame.columns if name not in ("size", "kind", "wide")]
    assert again.select(exact).equals(frame.select(exact))
    assert again.select(exact).schema == frame.select(exact).schema
    assert found["kind"].to_pylist() == ["a", "b"]
    assert found["wide"].to_pylist() == [str(2**100), None]  # which Arrow does not have


def test_a_frame_of_objects_has_their_texts() -> None:
    frame = polars.DataFrame({"a": polars.Series([{1}], dtype=polars.Object)})
    with source_of(frame).table() as table:
        assert [row.document for row in table if isinstance(row, Row)] == [{"a": "{1}"}]
