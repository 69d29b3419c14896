"""The kinds of tables that Python has: each becomes the rows of a job, and gets the columns of the answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from bros_batch.client.bad_input import BadInput
from bros_batch.documents.native_value import native_value
from bros_batch.documents.readers.table import BadRow, Row, Table

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

BATCH_ROWS = 1000

Columns = Mapping[str, Sequence[Any]]


class Frame(Protocol):
    """A data frame of pandas or polars, or a table of pyarrow."""

    def __dataframe__(self, nan_as_null: bool = ..., allow_copy: bool = ...) -> Any: ...


class Source(Protocol):
    """A table of some kind. Its answers may be objects of pydantic if `is_plain`, and are all it has if `is_texts`."""

    @property
    def is_plain(self) -> bool: ...
    @property
    def is_texts(self) -> bool: ...

    def table(self) -> Table:
        """Return the table for reading it once."""

    def column_names(self) -> Iterable[str]:
        """Return the names of its columns. They are known once the table has been read."""

    def num_rows(self) -> int:
        """Return the number of its rows, which is known once the table has been read."""

    def joined(self, columns: Columns) -> Any:
        """Return a table of the same kind with these columns behind its own."""


def source_of(table: Any) -> Source:
    """Return the source for a data frame, a table of pyarrow, or an iterable of dicts or of texts."""
    packages = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(table).__mro__}
    if ("pandas", "DataFrame") in packages:
        return PandasSource(table)
    if ("polars", "DataFrame") in packages:
        return PolarsSource(table)
    if ("pyarrow", "Table") in packages:
        return ArrowSource(table)
    if ("polars", "LazyFrame") in packages:
        raise BadInput("A LazyFrame has no rows yet; pass frame.collect().")
    if packages & {("pandas", "Series"), ("polars", "Series")}:
        raise BadInput("A series is not a table; pass series.to_frame() or list(series).")
    if isinstance(table, Iterable) and not isinstance(table, Mapping | bytes):
        return PlainSource(table)
    raise BadInput(
        "The table must be a path, a data frame of pandas or polars, a table of pyarrow, or an iterable of dicts or of "
        f"texts, not {type(table).__name__}."
    )


def _checked_names(names: Iterable[Any]) -> list[str]:
    found = [str(name) for name in names]
    for name in found:
        if found.count(name) > 1:
            raise BadInput(f"The table has two columns named {name!r}; rename one of them.")
    return found


def _arrow(column: Any) -> pyarrow.Array | None:
    """A series as an array of Arrow, or None if it has no such type or Arrow is not installed."""
    try:
        import pyarrow
    except ImportError:
        return None
    try:
        return column.to_arrow() if hasattr(column, "to_arrow") else pyarrow.array(column, from_pandas=True)
    except (pyarrow.ArrowException, TypeError, ValueError):
        return None


def _types_of(columns: Mapping[str, pyarrow.Array | pyarrow.ChunkedArray]) -> dict[str, str]:
    if not columns:
        return {}
    from bros_batch.documents.readers.arrow_values import column_types

    return column_types(columns)


def _json_values(series: polars.Series) -> list[Any]:
    from bros_batch.documents.readers.arrow_values import json_values

    return json_values(series.to_arrow())


@dataclass(frozen=True, slots=True)
class PandasSource:
    """A data frame of pandas. Its index and the types of its columns stay."""

    frame: pandas.DataFrame
    is_plain = False
    is_texts = False

    def table(self) -> Table:
        names = self.column_names()
        return Table("the data frame", "pandas", names, self._rows(names), types=self._types(names))

    def _types(self, names: Sequence[str]) -> dict[str, str]:
        """The types of the columns. Those of objects, which may be any, are found in their values."""
        columns = {}
        for place, name in enumerate(names):
            column = self.frame.iloc[:0, place]
            if column.dtype != object and (array := _arrow(column)) is not None:
                columns[name] = array
        return _types_of(columns)

    def _rows(self, names: Sequence[str]) -> Iterator[Row]:
        for start in range(0, len(self.frame), BATCH_ROWS):
            part = self.frame.iloc[start : start + BATCH_ROWS]
            columns = [part.iloc[:, place] for place in range(len(names))]
            values = [each.astype(object).where(each.notna(), None).tolist() for each in columns]
            for number, row in enumerate(zip(*values, strict=True), start=start + 1):
                yield Row(number, dict(zip(names, map(native_value, row), strict=True)))

    def column_names(self) -> list[str]:
        return _checked_names(self.frame.columns)

    def num_rows(self) -> int:
        return len(self.frame)

    def joined(self, columns: Columns) -> pandas.DataFrame:
        import pandas

        added = pandas.DataFrame(
            {name: pandas.Series(values, index=self.frame.index) for name, values in columns.items()},
            index=self.frame.index,
        )
        return pandas.concat([self.frame, added], axis=1)


@dataclass(frozen=True, slots=True)
class PolarsSource:
    """A data frame of polars."""

    frame: polars.DataFrame
    is_plain = False
    is_texts = False

    def table(self) -> Table:
        empty = {
            series.name: array
            for series in self.frame.clear()
            if "Object" not in str(series.dtype) and (array := _arrow(series)) is not None
        }
        return Table(
            "the data frame", "polars", self.column_names(), self._rows(empty), types=_types_of(empty)
        )

    def _rows(self, in_arrow: Collection[str]) -> Iterator[Row]:
        """Yield the rows, by way of Arrow for the columns that it has: Python's times have no nanoseconds."""
        names = self.column_names()
        for start in range(0, self.frame.height, BATCH_ROWS):
            part = self.frame.slice(start, BATCH_ROWS)
            columns = [
                _json_values(series) if series.name in in_arrow else map(native_value, series.to_list())
                for series in part
            ]
            for number, row in enumerate(zip(*columns, strict=True), start=start + 1):
                yield Row(number, dict(zip(names, row, strict=True)))

    def column_names(self) -> list[str]:
        return list(self.frame.columns)

    def num_rows(self) -> int:
        return int(self.frame.height)

    def joined(self, columns: Columns) -> polars.DataFrame:
        import polars

        added = [polars.Series(name, values, strict=False) for name, values in columns.items()]
        return self.frame.with_columns(added)


@dataclass(frozen=True, slots=True)
class ArrowSource:
    """A table of pyarrow."""

    arrow: pyarrow.Table
    is_plain = False
    is_texts = False

    def table(self) -> Table:
        names = self.column_names()
        types = _types_of(dict(zip(names, self.arrow.columns, strict=True)))
        return Table("the table", "arrow", names, self._rows(names), types=types)

    def _rows(self, names: list[str]) -> Iterator[Row]:
        from bros_batch.documents.readers.parquet_table import batch_documents

        documents = (
            document
            for batch in self.arrow.to_batches(BATCH_ROWS)
            for document in batch_documents(batch, names)
        )
        return (Row(number, document) for number, document in enumerate(documents, start=1))

    def column_names(self) -> list[str]:
        return _checked_names(self.arrow.column_names)

    def num_rows(self) -> int:
        return int(self.arrow.num_rows)

    def joined(self, columns: Columns) -> pyarrow.Table:
        from bros_batch.documents.writers.parquet_writer import column_array

        table = self.arrow
        for name, values in columns.items():
            table = table.append_column(name, column_array(values))
        return table


@dataclass(slots=True)
class PlainSource:
    """Dicts, which get more keys, or texts, instead of which their answers are returned.

    The rows are kept while they are read, because an iterator gives them only once.
    """

    given: Iterable[Any]
    kept: list[Any] = field(default_factory=list)

    is_plain = True

    @property
    def is_texts(self) -> bool:
        return bool(self.kept) and isinstance(self.kept[0], str)

    def table(self) -> Table:
        return Table("the rows", "python", None, self._rows())

    def _rows(self) -> Iterator[Row | BadRow]:
        for number, row in enumerate(self.given, start=1):
            if isinstance(row, str):
                self.kept.append(row)
                yield Row(number, {"text": row})
            elif isinstance(row, Mapping):
                self.kept.append(row)
                yield Row(number, {str(name): native_value(value) for name, value in row.items()})
            else:
                raise BadInput(f"Row {number} must be a dict or a text, not {type(row).__name__}.")
            if isinstance(row, str) is not isinstance(self.kept[0], str):
                raise BadInput(f"Row {number} is {_kind(row)}, and row 1 is {_kind(self.kept[0])}.")

    def column_names(self) -> Iterable[str]:
        return () if self.is_texts else dict.fromkeys(str(name) for row in self.kept for name in row)

    def num_rows(self) -> int:
        return len(self.kept)

    def joined(self, columns: Columns) -> list[Any]:
        rows = zip(*columns.values(), strict=True)
        return [
            {**row, **dict(zip(columns, values, strict=True))}
            for row, values in zip(self.kept, rows, strict=True)
        ]


def _kind(row: Any) -> str:
    return "a text" if isinstance(row, str) else "a dict"
