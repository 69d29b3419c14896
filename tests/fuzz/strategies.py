"""Values that are nearly right: a valid request with a few changes, most of them values that programs stumble over."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

# fmt: off
NUMBERS = (
    0, 1, -1, 2, 16, 20, 21, 128, 1536, 4096, 151645, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30,
    -(2**31), -(2**63), -(2**64), -(10**30), 0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-50, 5e-324, 1e30, 1e308, -1e308,
    float("inf"), float("-inf"), float("nan"),
)
TEXTS = (
    "", " ", "a", "\n", "\r\n", "\x00", "\u2028", "\ufeff", "\ud800", "\U0010ffff", "{text}", "{", "}", "{{", "{a b}",
    "null", "NaN", "true", "../../etc/passwd", "%00", "<|im_end|>", "</s>", "'; DROP TABLE jobs; --", "e\u0301" * 50,
    "{a" + " " * 3000 + "x}", "x" * 5000, "9" * 400, "24h", "batch", "/v1/chat/completions", "user", "tool",
)
# fmt: on
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(), st.floats(), st.integers(0, 300))
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=40), st.text(st.characters(), max_size=20))
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    st.one_of(scalars, scalars.map(lambda value: [value] * 300)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(texts, inner, max_size=4),
    ),
    max_leaves=12,
)
deep = st.integers(1, 3000).map(lambda depth: "[" * depth + "]" * depth)


def paths_in(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in nested dicts and lists, from the outside in."""
    found = [at]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths_in(inner, (*at, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of `value` with another value at `path`."""
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


@st.composite
def changed(draw: st.DrawFn, valid: Any, most_changes: int = 3) -> Any:
    """`valid` with a few values replaced, removed or added."""
    value = valid
    for _ in range(draw(st.integers(1, most_changes))):
        path = draw(st.sampled_from(paths_in(value)))
        value = replaced(value, path, draw(values))
    return value
