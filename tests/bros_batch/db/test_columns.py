"""Tables derived from dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
from sqlalchemy import JSON, BigInteger, Double, MetaData, String, Text

from bros_batch.db import tables
from bros_batch.db.columns import BigCount, Key, table_of
from bros_batch.db.table_rows import ApiKey, EngineRow, File, Item, Job


@dataclass(frozen=True)
class Row:
    id: Key
    name: str | None
    size: Annotated[int, BigInteger()]
    seconds: float
    tokens: BigCount
    options: dict[str, Any]
    word: Annotated[str, String(8)] | None


def test_a_table_has_a_column_for_each_field() -> None:
    table = table_of("rows", Row, MetaData())
    columns = list(table.columns)
    assert [column.name for column in columns] == [field.name for field in fields(Row)]
    kinds = [String, Text, BigInteger, Double, BigInteger, JSON, String]
    assert [type(column.type) for column in columns] == kinds
    assert [column.nullable for column in columns] == [False, True, False, False, False, False, True]
    assert [column.primary_key for column in columns] == [True] + [False] * 6
    assert [column.server_default is not None for column in columns] == [False] * 4 + [True] + [False] * 2
    assert (table.c.id.type.length, table.c.word.type.length) == (64, 8)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        (tables.files, File),
        (tables.jobs, Job),
        (tables.items, Item),
        (tables.engines, EngineRow),
        (tables.api_keys, ApiKey),
    ],
)
def test_columns_are_in_the_order_of_the_fields(table: Any, row: Any) -> None:
    """A row is made of the values of a query by position."""
    assert table.columns.keys() == [field.name for field in fields(row)]
