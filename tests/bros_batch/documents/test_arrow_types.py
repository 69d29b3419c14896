"""Every value of every type of Arrow is the same after its way through JSON, and so is the type itself."""

from __future__ import annotations

import datetime
import io
import json
import math
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bros_batch.documents.arrow_types import arrow_type, categories_of, type_name
from bros_batch.documents.readers.arrow_values import json_values
from bros_batch.documents.readers.open_table import open_table
from bros_batch.documents.readers.table import Row
from bros_batch.documents.writers.arrow_column import ArrowColumn
from bros_batch.documents.writers.write_table import write_table

INT64 = st.integers(-(2**63), 2**63 - 1)
UNITS = ("s", "ms", "us", "ns")
DAY_SECONDS = 24 * 3600


def integers(bits: int, is_signed: bool) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else st.integers(0, 2**bits - 1)


def decimals(precision: int, scale: int) -> st.SearchStrategy[Decimal]:
    limit = 10**precision - 1
    return st.integers(-limit, limit).map(lambda digits: Decimal(digits).scaleb(-scale, _exact()))


def _exact() -> Any:
    import decimal

    return decimal.Context(prec=100)


# The simple types with what they hold: as Arrow takes it, times as whole numbers.
SIMPLE: list[tuple[pyarrow.DataType, st.SearchStrategy[Any]]] = [
    (pyarrow.bool_(), st.booleans()),
    *((getattr(pyarrow, f"int{bits}")(), integers(bits, True)) for bits in (8, 16, 32, 64)),
    *((getattr(pyarrow, f"uint{bits}")(), integers(bits, False)) for bits in (8, 16, 32, 64)),
    (pyarrow.float16(), st.floats(width=16)),
    (pyarrow.float32(), st.floats(width=32)),
    (pyarrow.float64(), st.floats()),
    *((make(), st.text(max_size=6)) for make in (pyarrow.string, pyarrow.large_string, pyarrow.string_view)),
    *((make(), st.binary(max_size=6)) for make in (pyarrow.binary, pyarrow.large_binary, pyarrow.binary_view)),
    (pyarrow.binary(4), st.binary(min_size=4, max_size=4)),
    (pyarrow.date32(), st.integers(-(2**31), 2**31 - 1)),
    (pyarrow.date64(), st.integers(-(2**31), 2**31 - 1).map(lambda days: days * DAY_SECONDS * 1000)),
    *((pyarrow.time32(unit), st.integers(0, DAY_SECONDS * per - 1)) for unit, per in (("s", 1), ("ms", 1000))),
    *((pyarrow.time64(unit), st.integers(0, DAY_SECONDS * per - 1)) for unit, per in (("us", 10**6), ("ns", 10**9))),
    *((pyarrow.timestamp(unit, zone), INT64) for unit in UNITS for zone in (None, "UTC", "Europe/Berlin", "-03:30")),
    *((pyarrow.duration(unit), INT64) for unit in UNITS),
    *((getattr(pyarrow, f"decimal{bits}")(digits, scale), decimals(digits, scale))
      for bits, digits in ((32, 9), (64, 18), (128, 38), (256, 76)) for scale in (0, 2, digits)),
]  # fmt: skip
EXTENSIONS: list[tuple[pyarrow.DataType, st.SearchStrategy[Any]]] = [
    (pyarrow.uuid(), st.binary(min_size=16, max_size=16)),
    (pyarrow.json_(), st.just('{"a": 1}')),
    (pyarrow.bool8(), st.integers(0, 1)),
]


def nullable(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


def nested(inner: tuple[pyarrow.DataType, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    kind, values = inner
    values = values.filter(lambda value: value == value)  # without NaN, which equals nothing
    several = st.lists(nullable(values), max_size=3)
    pairs = st.lists(st.tuples(st.text(max_size=2), nullable(values)), max_size=3)
    required = pyarrow.struct([pyarrow.field("a b", kind, nullable=False), ("c", pyarrow.int8())])
    fields = st.fixed_dictionaries({"a b": values, "c": nullable(integers(8, True))})
    return st.sampled_from([
        (pyarrow.list_(kind), several),
        (pyarrow.large_list(kind), several),
        (pyarrow.list_(kind, 2), st.lists(nullable(values), min_size=2, max_size=2)),
        (pyarrow.map_(pyarrow.string(), kind), pairs),
        (required, fields),
    ])  # fmt: skip


COLUMNS = st.recursive(st.sampled_from(SIMPLE), lambda inner: inner.flatmap(nested), max_leaves=3).flatmap(
    lambda found: st.tuples(st.just(found[0]), st.lists(nullable(found[1]), max_size=6))
)


def through_json(values: list[Any]) -> list[Any]:
    return [msgspec.json.decode(msgspec.json.encode(value)) for value in values]


def is_same(first: pyarrow.Array, second: pyarrow.Array) -> bool:
    """Whether two arrays are equal. NaN, which is in simple ones only, equals itself, and -0.0 is not 0.0."""
    if pyarrow.types.is_nested(first.type):
        return bool(first.equals(second))
    return first.type == second.type and repr(raw(first)) == repr(raw(second))


def raw(array: pyarrow.Array) -> Any:
    """The values, times as the numbers that they are."""
    kind = array.type
    if pyarrow.types.is_temporal(kind):
        array = array.view(pyarrow.int64() if kind.bit_width == 64 else pyarrow.int32())
    return array.to_pylist()


def back(array: pyarrow.Array) -> pyarrow.Array:
    name = type_name(array.type)
    assert name is not None, array.type
    kind = arrow_type(name)
    assert kind == array.type, name
    return ArrowColumn(kind).array(through_json(json_values(array)))


@settings(max_examples=200, deadline=None)
@given(COLUMNS, st.integers(0, 2))
def test_a_column_is_the_same_after_its_way_through_json(
    column: tuple[pyarrow.DataType, list[Any]], start: int
) -> None:
    kind, values = column
    array = pyarrow.array(values, kind)[start:]  # a slice has offsets
    found = back(array)
    assert is_same(found, array), (json_values(array), found)


def is_of_parquet(kind: pyarrow.DataType) -> bool:
    """Whether Parquet has a type. It has no moments in seconds, for example, which become milliseconds."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], kind)}), file)
    return bool(pyarrow.parquet.read_schema(file).types == [kind])


OF_PARQUET = [(kind, values) for kind, values in [*SIMPLE, *EXTENSIONS] if is_of_parquet(kind)]


def written(source: pyarrow.Table) -> pyarrow.Table:
    """A table after its way from a Parquet file through rows of JSON to another Parquet file."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(source, file)
    columns = source.column_names
    with open_table(file, "in.parquet") as table:
        rows = [row.document for row in table if isinstance(row, Row)]
        types = [table.types.get(name) for name in columns]
    sent = through_json(rows)
    out = io.BytesIO()
    write_table("parquet", out, columns, lambda: ([row[name] for name in columns] for row in sent), types)
    return pyarrow.parquet.read_table(out)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_each_type_of_parquet_comes_out_of_parquet(data: st.DataObject) -> None:
    assert len(OF_PARQUET) > 40
    arrays = {}
    for kind, values in OF_PARQUET:
        drawn = data.draw(st.lists(nullable(values), min_size=3, max_size=3))
        arrays[str(kind)] = pyarrow.array(drawn, kind)
    found = written(pyarrow.table(arrays))
    assert found.schema.types == [array.type for array in arrays.values()]
    for name, array in arrays.items():
        assert repr(raw(found[name].combine_chunks())) == repr(raw(array)), name


SIZES = pyarrow.array(["small", "medium", "large"])  # in an order of their own


def test_categories_and_their_order_come_out_of_parquet() -> None:
    ordered = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([2, None, 0], pyarrow.int8()), SIZES, ordered=True
    )
    found = written(pyarrow.table({"size": ordered}))  # those of numbers are numbers in Parquet
    assert found.schema.types == [ordered.type]
    assert found["size"].to_pylist() == ["large", None, "small"]
    assert found["size"].chunk(0).dictionary.to_pylist() == SIZES.to_pylist()


def test_categories_that_grow_from_batch_to_batch_are_all_known() -> None:
    chunks = [
        pyarrow.array([f"n{start + number}" for number in range(700)]).dictionary_encode()
        for start in (0, 500)
    ]
    source = pyarrow.table({"a": pyarrow.chunked_array(chunks)})
    found = written(source)
    assert found.schema.types == source.schema.types
    assert found["a"].to_pylist() == source["a"].to_pylist()


def test_values_that_are_no_category_make_a_column_of_text() -> None:
    name = type_name(pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), SIZES.to_pylist())
    assert categories_of(name) == SIZES.to_pylist()
    out = io.BytesIO()
    write_table("parquet", out, ["size"], lambda: iter([["small"], ["huge"]]), [name])
    table = pyarrow.parquet.read_table(out)
    assert table.schema.types == [pyarrow.string()]
    assert table["size"].to_pylist() == ["small", "huge"]


def test_texts_are_those_that_people_write() -> None:
    """In a prompt and in CSV, values look as they do elsewhere."""
    moment = 1_709_212_455_678_900_123
    columns = [
        (
            pyarrow.array([moment], pyarrow.timestamp("ns", "Europe/Berlin")),
            "2024-02-29T14:14:15.678900123+01:00",
        ),
        (pyarrow.array([0], pyarrow.timestamp("s")), "1970-01-01T00:00:00"),
        (pyarrow.array([-1], pyarrow.duration("ns")), "-1 day, 23:59:59.999999999"),
        (pyarrow.array([86_399_000_000_001], pyarrow.time64("ns")), "23:59:59.000000001"),
        (pyarrow.array([2_932_897], pyarrow.date32()), "2932897 days since 1970-01-01"),
        (pyarrow.array([0.1], pyarrow.float32()), 0.1),
        (pyarrow.array([0.1], pyarrow.float16()), 0.1),
        (pyarrow.array([math.nan]), "NaN"),
        (pyarrow.array([b"caf\xc3\xa9"]), "café"),
        (pyarrow.array([b"\xff\x00"]), "data:;base64,/wA="),
        (pyarrow.array([Decimal("12.50")]), "12.50"),
        (
            pyarrow.array([[("a", 1), ("b", None)]], pyarrow.map_(pyarrow.string(), pyarrow.int8())),
            {"a": 1, "b": None},
        ),
        (pyarrow.array([[(1, "x")]], pyarrow.map_(pyarrow.int8(), pyarrow.string())), [[1, "x"]]),
        (pyarrow.array([[datetime.date(2024, 2, 29)]]), ["2024-02-29"]),
        (pyarrow.array([pyarrow.MonthDayNano([1, 2, 3])]), [1, 2, 3]),
    ]
    for array, text in columns:
        assert json_values(array) == [text]


def test_a_text_that_is_no_type_is_none() -> None:
    names = ["", "dat", "{", "{}", '{"list": "x"}', '{"list": 1}', '{"struct": [["a"]]}', '{"map": ["text"]}']
    names += ['{"list":' * 5000, '{"fixed_size_list": "text"}', '{"dictionary": "text", "indices": "text"}']
    for name in names:
        assert arrow_type(name) is None, name
        assert categories_of(name) is None, name


@pytest.mark.parametrize(
    "name",
    [
        '{"list": ["x"]}',
        '{"map": ["text", ["x"]]}',
        '{"list": {"required": 5}}',
        '{"list": null}',
        '{"struct": ["ab"]}',
        '{"dictionary": "text"}',
        "{",
        "text, or not",
    ],
)
def test_what_describes_no_type_is_none(name: str) -> None:
    assert arrow_type(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "fixed_size_binary[999999]",
        '{"list": {"fixed_size_list": "integer", "size": 1000000}}',
        '{"fixed_size_list": {"fixed_size_list": "number", "size": 1000}, "size": 1000}',
        json.dumps({"struct": [[f"f{number}", "fixed_size_binary[16384]"] for number in range(9)]}),
    ],
)
def test_a_type_whose_nulls_would_take_much_memory_is_none(name: str) -> None:
    assert arrow_type(name) is None
    assert arrow_type('{"fixed_size_list": "double", "size": 16384}') == pyarrow.list_(
        pyarrow.float64(), 16384
    )
