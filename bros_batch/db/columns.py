"""Tables derived from the dataclasses of their rows, so that each column is declared once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine


@dataclass(frozen=True, slots=True)
class ServerDefault:
    """The value that the database gives to a column which an INSERT does not name."""

    value: str


# Types of fields whose column says more than the Python type: `Annotated[type, column type, server default]`.
Key = Annotated[str, String(64)]
Word = Annotated[str, String(16)]
Count = Annotated[int, Integer(), ServerDefault("0")]
OwnerName = Annotated[
    str, String(64), ServerDefault("")
]  # empty: the owner of what keys without an owner create
BigCount = Annotated[int, BigInteger(), ServerDefault("0")]

_COLUMN_TYPES: dict[type, TypeEngine[Any]] = {
    str: Text(),
    int: Integer(),
    float: Double(),
    bool: Boolean(),
    bytes: LargeBinary(),
    dict: JSON(none_as_null=True),
    list: JSON(),
}


def table_of(name: str, row: type, metadata: MetaData, *constraints: SchemaItem, **options: Any) -> Table:
    """The table of a row's dataclass: one column per field, in the same order, the first of them the primary key.

    A field is nullable where its type says `| None`. Since the order is the same, `row(*values)` makes an instance
    from what `select(table)` returns.
    """
    hints = get_type_hints(row, include_extras=True)
    names = [field.name for field in fields(row)]
    columns = [_column(field, hints[field], primary_key=field == names[0]) for field in names]
    return Table(name, metadata, *columns, *constraints, **options)


def _column(name: str, hint: Any, primary_key: bool) -> Column[Any]:
    nullable = NoneType in get_args(hint)
    if nullable:
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    extras: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        extras = tuple(rest)
    column_type = _COLUMN_TYPES[get_origin(hint) or hint]
    server_default = None
    for extra in extras:
        if isinstance(extra, ServerDefault):
            server_default = extra.value
        else:
            column_type = extra
    return Column(
        name, column_type, primary_key=primary_key, nullable=nullable, server_default=server_default
    )
