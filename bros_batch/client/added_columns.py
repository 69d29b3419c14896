"""Columns to add, written in words: `NAME`, `NAME: MEANING`, `NAME: TYPE` or `NAME: TYPE, MEANING`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bros_batch.client.bad_input import BadInput
from bros_batch.documents import added_columns
from bros_batch.request_error import RequestError


def columns_format(texts: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the `response_format` for these columns, and the end of the prompt that explains them. Raises BadInput."""
    try:
        return added_columns.columns_format([added_columns.column(text) for text in texts])
    except RequestError as error:
        raise BadInput(error.message) from None
