"""Parquet: the type of each column is known or found in its values, then row groups of a bounded size are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from bros_batch.documents.arrow_types import arrow_type, categories_of
from bros_batch.documents.writers.arrow_column import ArrowColumn

BATCH_ROWS = 5_000
GROUP_ROWS = 50_000
GROUP_BYTES = 64 * 1024**2
# Objects with more different keys than that are maps and no records; they are written as JSON.
MAX_FIELDS = 256


def write_parquet(
    file: IO[bytes],
    columns: Sequence[str],
    rows: Callable[[], Iterable[Sequence[Any]]],
    types: Sequence[str | None],
) -> int:
    """Write a table with columns of these types. Returns the number of rows.

    Where the type is not known, whole numbers, numbers, truth values, texts, lists and objects have theirs. A column
    with values that have no type in common, or not the one that is known, is text.
    """
    found = _types(types, rows())
    schema = pyarrow.schema([(name, each.kind) for name, each in zip(columns, found, strict=True)])
    count = 0
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        group: list[pyarrow.RecordBatch] = []
        num_rows = num_bytes = 0
        for batch in _batches(rows()):
            arrays = [
                each.array(values) for each, values in zip(found, zip(*batch, strict=True), strict=True)
            ]
            group.append(pyarrow.record_batch(arrays, schema=schema))
            num_rows += len(batch)
            num_bytes += group[-1].nbytes
            if num_rows >= GROUP_ROWS or num_bytes >= GROUP_BYTES:
                writer.write_table(pyarrow.Table.from_batches(group))
                count += num_rows
                group, num_rows, num_bytes = [], 0, 0
        if group:
            writer.write_table(pyarrow.Table.from_batches(group))
    return count + num_rows


def column_array(values: Sequence[Any]) -> pyarrow.Array:
    """Return the values as a column of the type that `write_parquet` gives them."""
    (found,) = _types([None], ([value] for value in values))
    return found.array(values)


def _batches(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    batch: list[Sequence[Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _types(known: Sequence[str | None], rows: Iterable[Sequence[Any]]) -> list[ArrowColumn]:
    """The types of the columns: those that are known if all values have them, or else those of the values."""
    text = pyarrow.string()
    expected = [_expected(name) for name in known]
    found = [each or ArrowColumn(pyarrow.null()) for each in expected]
    for batch in _batches(rows):
        for place, values in enumerate(zip(*batch, strict=True)):
            column = found[place]
            if column.kind == text:
                continue
            if expected[place] is None:
                found[place] = ArrowColumn(_common(column.kind, values))
            elif not _have_type(values, column):
                found[place] = ArrowColumn(text)
    # A column without a value is text: most readers of Parquet cannot read the type that has no values.
    return [ArrowColumn(text) if pyarrow.types.is_null(each.kind) else each for each in found]


def _expected(name: str | None) -> ArrowColumn | None:
    kind = arrow_type(name)
    return None if kind is None else ArrowColumn(kind, categories_of(name))


def _have_type(values: Sequence[Any], column: ArrowColumn) -> bool:
    kinds = {type(value) for value in values} - {type(None)}
    if bool in kinds and not pyarrow.types.is_boolean(column.kind):
        return False
    try:
        column.array(values)
    except (pyarrow.ArrowException, OverflowError, ValueError, TypeError, AttributeError):
        return False
    return True


def _common(known: pyarrow.DataType, values: Sequence[Any]) -> pyarrow.DataType:
    """The type of values that a column has after others of a known type."""
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return known
    if kinds == {str} and pyarrow.types.is_null(known):
        return pyarrow.string()
    if len(kinds) > 1 and kinds != {int, float}:
        return pyarrow.string()
    try:
        found = pyarrow.array(values)
        fields = [pyarrow.schema([("", kind)]) for kind in (known, found.type)]
        (field,) = pyarrow.unify_schemas(fields, promote_options="permissive")
    except (pyarrow.ArrowException, OverflowError):
        return pyarrow.string()
    if pyarrow.types.is_struct(field.type) and not 0 < field.type.num_fields <= MAX_FIELDS:
        return pyarrow.string()
    return field.type
