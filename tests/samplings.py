"""Random sampling parameters of every field, valid and not, for tests that any request may come to the engine.

The strategies follow the types and the ranges that the wire declares, so that a new field is drawn without a change
here; one of a type that is unknown here fails.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from engine.wire.limits import BIAS_RANGE, SAMPLING_RANGES, Range
from engine.wire.request_terms import MAX_GRAMMAR_CHARS, Grammar, Sampling

HOSTILE_NUMBERS: tuple[float, ...] = (
    float("nan"), float("inf"), float("-inf"), 5e-324, -5e-324, 1e-50, 1e-38, 1e-9, 1e-5, 1e38, 1e39, 1e308,
    -1e308, -0.0,
)  # fmt: skip
HOSTILE_INTEGERS = (
    -1, 0, 21, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30,
)  # fmt: skip
GRAMMARS = (
    Grammar("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'),
    Grammar("json_schema", '{"enum": ["yes", "no"]}'),
    Grammar("regex", "[a-c]{1,20}"),
    Grammar("lark", 'start: "a"+ "b"'),
)
HOSTILE_GRAMMARS = (
    Grammar("json_schema", ""),
    Grammar("json_schema", "{"),
    Grammar("json_schema", "[]"),
    Grammar("json_schema", '{"type": 7}'),
    Grammar("json_schema", '{"$ref": "#/nowhere"}'),
    Grammar("json_schema", '{"allOf": ' + "[" * 5000),
    Grammar("json_schema", '{"type": "string", "pattern": "(a{1,1000}){1,1000}"}'),
    Grammar("json_schema", "\ud800"),
    Grammar("regex", "(" * 10_000),
    Grammar("regex", "a{1000000}"),
    Grammar("regex", ""),
    Grammar("lark", "start: start"),
    Grammar("lark", "start: " + "x" * (MAX_GRAMMAR_CHARS + 1)),
    Grammar("lark", 'start: "a" | '),
    Grammar("xml", "a"),  # type: ignore[arg-type]
)
TEXTS = ("", "e", "ta", "</s>", "\0", "é", "\U0001f600", "\ud800", "a" * 1000, "a" * 1001)


def samplings(vocab_size: int) -> st.SearchStrategy[Sampling]:
    """Parameters with up to three fields that may have any value of their type; all others are valid."""
    info = inspect.type_info(Sampling)
    assert isinstance(info, inspect.StructType)
    types = {field.name: field.type for field in info.fields}
    required = [field.name for field in info.fields if field.required]

    @st.composite
    def draw(draw: st.DrawFn) -> Sampling:
        wild = draw(st.sets(st.sampled_from(sorted(types)), max_size=3))
        chosen = draw(st.sets(st.sampled_from(sorted(types)), max_size=6))
        values = {
            name: draw(_values(name, types[name], vocab_size, is_wild=name in wild))
            for name in sorted({*required, *wild, *chosen})
        }
        if values.get("score_token_ids") or values.get("pooling"):
            # With these, no tokens are asked for.
            for name in {"max_tokens", "min_tokens"} & values.keys() - wild:
                values[name] = 0
        return Sampling(**values)

    return draw()


def _values(name: str, kind: inspect.Type, vocab_size: int, *, is_wild: bool) -> st.SearchStrategy[Any]:
    valid = SAMPLING_RANGES.get(name)
    match kind:
        case inspect.UnionType(types=types):
            return st.one_of(*(_values(name, each, vocab_size, is_wild=is_wild) for each in types))
        case inspect.NoneType():
            return st.none()
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            assert valid is not None, f"{name} has no range in engine.wire.limits"
            return _integers(valid, is_wild)
        case inspect.FloatType():
            assert valid is not None, f"{name} has no range in engine.wire.limits"
            return _numbers(valid, is_wild)
        case inspect.StructType(cls=cls) if cls is Grammar:
            return st.sampled_from(GRAMMARS + HOSTILE_GRAMMARS if is_wild else GRAMMARS)
        case inspect.VarTupleType(item_type=item_type, max_length=max_length):
            assert max_length is not None, f"the length of {name} has no limit"
            items = _items(item_type, vocab_size, is_wild=is_wild)
            short = st.lists(items, max_size=5)
            sizes = (
                st.sampled_from([max_length, max_length + 1, 4 * max_length])
                if is_wild
                else st.just(max_length)
            )
            long = st.builds(lambda item, size: [item] * size, items, sizes)
            return st.one_of(short, long).map(tuple)
        case _:
            raise AssertionError(f"no values are known for {name}, a {kind}")


def _items(kind: inspect.Type, vocab_size: int, *, is_wild: bool) -> st.SearchStrategy[Any]:
    token_ids = st.sampled_from([0, 2, vocab_size // 2, vocab_size - 1])
    if is_wild:
        token_ids |= st.sampled_from([vocab_size, vocab_size + 5, 2 * vocab_size, 151_645, *HOSTILE_INTEGERS])
    match kind:
        case inspect.StrType():
            return st.sampled_from(TEXTS if is_wild else TEXTS[:7])
        case inspect.IntType():
            return token_ids
        case inspect.TupleType(item_types=(inspect.IntType(), inspect.FloatType())):
            return st.tuples(token_ids, _numbers(BIAS_RANGE, is_wild))
        case _:
            raise AssertionError(f"no values are known for a list of {kind}")


def _integers(valid: Range, is_wild: bool) -> st.SearchStrategy[int]:
    least, most = int(valid.least), int(valid.most)
    usual = st.integers(max(least, 1), min(most, 6)) | st.sampled_from([least, most])
    return (
        usual | st.sampled_from(HOSTILE_INTEGERS) | st.sampled_from([least - 1, most + 1])
        if is_wild
        else usual
    )


def _numbers(valid: Range, is_wild: bool) -> st.SearchStrategy[float]:
    usual = st.floats(valid.least, valid.most) | st.sampled_from([float(valid.least), float(valid.most)])
    return usual | st.sampled_from(HOSTILE_NUMBERS) | st.floats() if is_wild else usual


def sent(sampling: Sampling) -> Sampling | None:
    """The parameters as they arrive after encoding and decoding, or None if they cannot be sent or read."""
    try:
        return msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=Sampling)
    except (msgspec.MsgspecError, ValueError, OverflowError):
        return None
