"""Parquet: the type of each column is known or found in its values, then row groups of a bounded size are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from bros_batch.documents.column_types import Reader, reader_of
from bros_batch.documents.writers.cells import cell_text

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 5_000
GROUP_ROWS = 50_000
GROUP_BYTES = 64 * 1024**2
# Objects with more different keys than that are maps and no records; they are written as JSON.
MAX_FIELDS = 256
_TIMESTAMP = re.compile(r"timestamp\[(s|ms|us|ns)(?:, tz=(.+))?\]")
_DECIMAL = re.compile(r"decimal(128|256)\((\d{1,2}), (-?\d{1,2})\)")


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
    import pyarrow
    import pyarrow.parquet

    kinds, readers = _types(types, rows())
    schema = pyarrow.schema(list(zip(columns, kinds, strict=True)))
    count = 0
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        group: list[pyarrow.RecordBatch] = []
        num_rows = num_bytes = 0
        for batch in _batches(rows()):
            arrays = [
                _array(values, kind, read)
                for values, kind, read in zip(zip(*batch, strict=True), kinds, readers, strict=True)
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
    (kind,), _ = _types([None], ([value] for value in values))
    return _array(values, kind)


def _batches(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    batch: list[Sequence[Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def arrow_type(name: str | None) -> pyarrow.DataType | None:
    """The type that is written for one of `column_types`; None if it is not known."""
    import pyarrow

    words = {
        "text": pyarrow.string(),
        "number": pyarrow.float64(),
        "integer": pyarrow.int64(),
        "boolean": pyarrow.bool_(),
        "date": pyarrow.date32(),
        "datetime": pyarrow.timestamp("us"),
        "time": pyarrow.time64("us"),
        "duration": pyarrow.duration("us"),
    }
    if name is None or name in words:
        return words.get(name or "")
    try:
        if found := _TIMESTAMP.fullmatch(name):
            return pyarrow.timestamp(found[1], found[2])
        if found := _DECIMAL.fullmatch(name):
            make = pyarrow.decimal128 if found[1] == "128" else pyarrow.decimal256
            return make(int(found[2]), int(found[3]))
        return pyarrow.type_for_alias(name)
    except ValueError:
        return None


def _types(
    known: Sequence[str | None], rows: Iterable[Sequence[Any]]
) -> tuple[list[pyarrow.DataType], list[Reader | None]]:
    """The types of the columns: those that are known if all values have them, or else those of the values.

    Columns whose values are read from texts have the function for it.
    """
    import pyarrow

    text = pyarrow.string()
    expected = [arrow_type(name) for name in known]
    types = [pyarrow.null() if kind is None else kind for kind in expected]
    readers = [None if kind is None else reader_of(name) for name, kind in zip(known, expected, strict=True)]
    for batch in _batches(rows):
        for column, values in enumerate(zip(*batch, strict=True)):
            if types[column] == text:
                continue
            if expected[column] is None:
                types[column] = _common(types[column], values)
            elif not _have_type(values, types[column], readers[column]):
                types[column], readers[column] = text, None
    # A column without a value is text: most readers of Parquet cannot read the type that has no values.
    return [text if pyarrow.types.is_null(each) else each for each in types], readers


def _have_type(values: Sequence[Any], kind: pyarrow.DataType, read: Reader | None) -> bool:
    import pyarrow

    kinds = {type(value) for value in values} - {type(None)}
    if bool in kinds and not pyarrow.types.is_boolean(kind):
        return False
    try:
        _array(values, kind, read)
    except (pyarrow.ArrowException, OverflowError, ValueError, TypeError):
        return False
    return True


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


def _array(values: Sequence[Any], kind: pyarrow.DataType, read: Reader | None = None) -> pyarrow.Array:
    """The values as an array. `read` makes those of a type that JSON does not have from their texts."""
    import pyarrow

    if read is not None:
        values = [None if value is None else read(value) for value in values]
    elif pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        values = [value if value is None or type(value) is str else cell_text(value) for value in values]
    elif pyarrow.types.is_floating(kind):
        values = [float(value) if type(value) is int else value for value in values]
    return pyarrow.array(values, kind)
