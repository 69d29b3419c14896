"""Types of numeric options."""

from __future__ import annotations

import math
from typing import Any

import click

# The server's own limit of token ids and lengths (MAX_TOKEN_ID), written out because its module takes long to import.
MAX_TOKENS = 2**31 - 1


class Finite(click.FloatRange):
    """A float range that rejects inf and nan, which FloatRange accepts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


POSITIVE = Finite(0, min_open=True)
TEMPERATURE = Finite(0, 2)
NUM_TOKENS = click.IntRange(1, MAX_TOKENS)
TOP_K = click.IntRange(-1, MAX_TOKENS)
