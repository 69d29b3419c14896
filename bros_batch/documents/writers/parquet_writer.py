"""Parquet: the type of each column is found in its values first, then row groups of a bounded size are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from bros_batch.documents.writers.cells import cell_text

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 5_000
GROUP_ROWS = 50_000
GROUP_BYTES = 64 * 1024**2
# Objects with more different keys than that are maps and no records; they are written as JSON.
MAX_FIELDS = 256


def write_parquet(
    file: IO[bytes], columns: Sequence[str], rows: Callable[[], Iterable[Sequence[Any]]]
) -> int:
    """Write a table. Returns the number of rows.

    Whole numbers, numbers, truth values, texts, lists and objects keep their types. A column with values that have no
    type in common is text.
    """
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(list(zip(columns, _types(len(columns), rows()), strict=True)))
    count = 0
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        group: list[pyarrow.RecordBatch] = []
        num_rows = num_bytes = 0
        for batch in _batches(rows()):
            arrays = [
                _array(list(values), field.type)
                for values, field in zip(zip(*batch, strict=True), schema, strict=True)
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
    (kind,) = _types(1, ([value] for value in values))
    return _array(list(values), kind)


def _batches(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    batch: list[Sequence[Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _types(num_columns: int, rows: Iterable[Sequence[Any]]) -> list[pyarrow.DataType]:
    """The types of the columns, from all of their values."""
    import pyarrow

    text = pyarrow.string()
    types = [pyarrow.null()] * num_columns
    for batch in _batches(rows):
        for column, values in enumerate(zip(*batch, strict=True)):
            if types[column] != text:
                types[column] = _common(types[column], values)
    # A column without a value is text: most readers of Parquet cannot read the type that has no values.
    return [text if pyarrow.types.is_null(each) else each for each in types]


def _common(known: pyarrow.DataType, values: Sequence[Any]) -> pyarrow.DataType:
    """The type of values that a column has after others of a known type."""
    import pyarrow

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


def _array(values: list[Any], kind: pyarrow.DataType) -> pyarrow.Array:
    import pyarrow

    if pyarrow.types.is_string(kind):
        values = [value if value is None or type(value) is str else cell_text(value) for value in values]
    elif pyarrow.types.is_floating(kind):
        values = [float(value) if type(value) is int else value for value in values]
    return pyarrow.array(values, kind)
