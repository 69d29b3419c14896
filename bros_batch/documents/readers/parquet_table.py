"""Parquet: read batch by batch, with values that JSON has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from bros_batch.documents.readers.column_names import column_names
from bros_batch.documents.readers.table import BadRow, Row, Table, UnreadableTable

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

BATCH_ROWS = 1000
BUFFER_BYTES = 1024**2


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
    from bros_batch.documents.readers.arrow_values import column_types

    types = column_types(dict(zip(columns, parquet.schema_arrow.empty_table().columns, strict=True)))
    return Table(name, "parquet", columns, _rows(name, parquet, columns, types), types=types)


def _rows(
    name: str, parquet: pyarrow.parquet.ParquetFile, columns: list[str], types: dict[str, str]
) -> Iterator[Row | BadRow]:
    """Yield the rows, and put the values of dictionaries into `types`."""
    import pyarrow

    dictionaries = _Dictionaries(columns, parquet.schema_arrow, types)
    number = 0
    try:
        for batch in parquet.iter_batches(BATCH_ROWS):
            dictionaries.see(batch)
            for document in batch_documents(batch, columns):
                number += 1
                yield Row(number, document)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UnreadableTable(f"{name} is damaged after row {number}: {_reason(error)}") from None


def batch_documents(batch: pyarrow.RecordBatch, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch with these names of its columns."""
    from bros_batch.documents.readers.arrow_values import json_values

    columns = [json_values(column) for column in batch.columns]
    for row in zip(*columns, strict=True):
        yield dict(zip(names, row, strict=True))


class _Dictionaries:
    """Collects the values of the columns that are dictionaries, in their order, and puts them into the types."""

    def __init__(self, names: Sequence[str], schema: pyarrow.Schema, types: dict[str, str]) -> None:
        self._types = types
        self._kinds = {
            place: (names[place], kind)
            for place, kind in enumerate(schema.types)
            if hasattr(kind, "index_type")
        }
        self._seen: dict[int, pyarrow.Array] = {}

    def see(self, batch: pyarrow.RecordBatch) -> None:
        for place, (name, kind) in self._kinds.items():
            found, known = batch.column(place).dictionary, self._seen.get(place)
            if known is None or not found.equals(known):
                self._seen[place] = found if known is None else _joined(known, found)
                self._note(name, kind, self._seen[place])

    def _note(self, name: str, kind: pyarrow.DataType, values: pyarrow.Array) -> None:
        from bros_batch.documents.arrow_types import type_name
        from bros_batch.documents.readers.arrow_values import json_values

        if (found := type_name(kind, json_values(values))) is not None:
            self._types[name] = found


def _joined(first: pyarrow.Array, second: pyarrow.Array) -> pyarrow.Array:
    import pyarrow

    return pyarrow.concat_arrays([first, second]).unique()


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{text.rstrip('.')}."
