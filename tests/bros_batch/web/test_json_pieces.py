"""Responses are encoded in pieces, which is the same JSON as that of the whole."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bros_batch.web import json_pieces

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=4), st.integers(1, 3))
def test_pieces_are_the_whole(body: dict[str, Any], piece_elements: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_pieces, "PIECE_ELEMENTS", piece_elements)
        assert json_pieces.encoded_in_pieces(body) == msgspec.json.encode(body)
