"""Parquet: read batch by batch, with values that JSON has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from bros_batch.documents.native_value import native_value
from bros_batch.documents.readers.column_names import column_names
from bros_batch.documents.readers.table import BadRow, Row, Table, UnreadableTable

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

BATCH_ROWS = 1000
BUFFER_BYTES = 1024**2
# Arrow's names of the types that have a word of their own.
_WORDS = {
    "string": "text",
    "double": "number",
    "int64": "integer",
    "bool": "boolean",
    "date32[day]": "date",
    "timestamp[us]": "datetime",
}


def parquet_table(name: str, file: BinaryIO) -> Table:
    """Open a Parquet file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UnreadableTable(
            f"{name} is a Parquet file; to read it, install pyarrow: pip install 'bros-batch[tables]'."
        ) from None
    try:
        parquet = pyarrow.parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        names = parquet.schema_arrow.names
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UnreadableTable(f"{name} is a damaged Parquet file: {_reason(error)}") from None
    columns = list(names) if len(set(names)) == len(names) else column_names(names)
    types = column_types(parquet.schema_arrow, columns)
    return Table(name, "parquet", columns, _rows(name, parquet, columns), types=types)


def column_types(schema: pyarrow.Schema, names: Sequence[str]) -> dict[str, str]:
    """The types of these columns. Those of lists and objects are found in their values again."""
    from pyarrow import types

    is_kept = (
        types.is_integer,
        types.is_float32,
        types.is_float64,
        types.is_boolean,
        types.is_date,
        types.is_time,
        types.is_timestamp,
        types.is_duration,
        types.is_decimal128,
        types.is_decimal256,
        types.is_string,
        types.is_large_string,
    )
    kinds = zip(names, schema.types, strict=True)
    return {
        name: _WORDS.get(str(kind), str(kind)) for name, kind in kinds if any(each(kind) for each in is_kept)
    }


def _rows(name: str, parquet: pyarrow.parquet.ParquetFile, columns: list[str]) -> Iterator[Row | BadRow]:
    import pyarrow

    number = 0
    try:
        for batch in parquet.iter_batches(BATCH_ROWS):
            for document in batch_documents(batch, columns):
                number += 1
                yield Row(number, document)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UnreadableTable(f"{name} is damaged after row {number}: {_reason(error)}") from None


def batch_documents(batch: pyarrow.RecordBatch, names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch with these names of its columns."""
    for document in _in_microseconds(batch, names).to_pylist():
        yield {key: native_value(value) for key, value in document.items()}


def _in_microseconds(batch: pyarrow.RecordBatch, names: list[str]) -> pyarrow.RecordBatch:
    """Python's times have no nanoseconds."""
    import pyarrow

    columns = []
    for column in batch.columns:
        kind = column.type
        if pyarrow.types.is_timestamp(kind) and kind.unit == "ns":
            column = column.cast(pyarrow.timestamp("us", kind.tz), safe=False)
        elif pyarrow.types.is_time64(kind) and kind.unit == "ns":
            column = column.cast(pyarrow.time64("us"), safe=False)
        elif pyarrow.types.is_duration(kind) and kind.unit == "ns":
            column = column.cast(pyarrow.duration("us"), safe=False)
        columns.append(column)
    return pyarrow.RecordBatch.from_arrays(columns, names=names)


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{text.rstrip('.')}."
