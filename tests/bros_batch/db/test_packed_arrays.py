"""Arrays in the binary format of PostgreSQL, as its server reads them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from bros_batch.db.connections import is_postgres, reading
from bros_batch.db.packed_arrays import PackedArray, bigints, blobs, integers, texts


def read(database: Engine, kind: str, packed: PackedArray) -> list[Any]:
    with reading(database) as connection:
        if not is_postgres(connection):
            pytest.skip("SQLite has no arrays")
        rows = connection.exec_driver_sql(f"SELECT * FROM unnest(%(given)s::{kind}[])", {"given": packed})
        return list(rows.scalars())


def test_the_server_reads_what_was_packed(database: Engine) -> None:
    numbers = [0, -1, 2**31 - 1, -(2**31)]
    assert read(database, "int", integers(numbers)) == numbers
    large = [2**63 - 1, -(2**63), 5]
    assert read(database, "bigint", bigints(large)) == large
    words = ["", None, 'a "quoted" {text}, NULL', "\\ \u20ac \U0001f600\n", "x" * 100_000]
    assert read(database, "text", texts(words)) == words
    pieces = [b"", bytes(range(256)), b"NULL"]
    assert read(database, "bytea", blobs(pieces)) == pieces
    assert read(database, "bigint", bigints([])) == []


def test_a_number_that_no_column_holds_is_an_error() -> None:
    for pack, number in ((integers, 2**31), (bigints, 2**63)):
        with pytest.raises(OverflowError, match="out of range"):
            pack([number])
