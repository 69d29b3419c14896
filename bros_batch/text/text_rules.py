"""What the text of an output holds besides the words: rules that a request may set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextRules:
    """How tokens become text.

    With `shows_special_tokens`, special tokens are text. With `keeps_stop`, the text ends with the stop string or stop
    token that ended the output instead of before it. With `names_ids`, log-probabilities name tokens by their ids.
    """

    shows_special_tokens: bool = False
    keeps_stop: bool = False
    names_ids: bool = False


WORDS = TextRules()
