"""Which sampled tokens end their request: end of sequence, stop tokens, stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.core.plan import RowStart

Decode = Callable[[Sequence[int]], str]
_REPLACEMENT = "�"
_TRIM_TOKENS = 64


class StopStrings:
    """Looks for strings in the text of a growing output, decoding only its end.

    ```
    token ids:  ......... | context | new ...
                       _start     _read          decode(context + new) minus decode(context) is new's text
    ```
    The context is there because a token's text may depend on the one before it (a leading space, say).
    """

    __slots__ = ("_decode", "_ids", "_longest", "_read", "_start", "_stops", "_tail")

    def __init__(self, stops: Sequence[str], decode: Decode) -> None:
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._read = 0
        self._tail = ""  # the end of the text so far in which a stop string may have begun

    def push(self, token_id: int) -> bool:
        """Takes the next output token; True if one of the strings stands in the text that it completes."""
        self._ids.append(token_id)
        context = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        window = self._tail + text[len(context) :]
        found = any(stop in window for stop in self._stops)
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._read < _TRIM_TOKENS:
            return found  # perhaps the middle of a character: its text is read again with the next token
        self._start, self._read = self._read, len(self._ids)
        if self._start > _TRIM_TOKENS:
            del self._ids[: self._start]
            self._start, self._read = 0, self._read - self._start
        self._tail = window[-(self._longest - 1) :] if self._longest > 1 else ""
        return found


class StopRules:
    """What ends the requests in the slot-table rows. The tokenizer is loaded when the first stop string comes."""

    def __init__(self, num_rows: int, eos_token_ids: frozenset[int], model: str) -> None:
        self._eos_token_ids = eos_token_ids
        self._model = model
        self._tokenizer: Any = None
        self._special: dict[str, int] = {}
        self._token_ids: list[frozenset[int]] = [frozenset()] * num_rows
        self._min_tokens = [0] * num_rows
        self._strings: dict[int, StopStrings] = {}

    def start(self, start: RowStart) -> None:
        """Row `start.row` now holds this request. Raises ValueError where its stop strings cannot be watched for."""
        sampling = start.sampling
        token_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            token_ids |= self._eos_token_ids
        self._token_ids[start.row] = token_ids
        self._min_tokens[start.row] = sampling.min_tokens
        self._strings.pop(start.row, None)
        if sampling.stop:
            decode, special = self._load_tokenizer()
            # Text leaves special tokens out, so a stop string that names one is watched for as a token.
            self._token_ids[start.row] |= {special[stop] for stop in sampling.stop if stop in special}
            strings = StopStrings(sampling.stop, decode)
            for token_id in start.token_ids[start.num_prompt_tokens :]:
                strings.push(token_id)
            self._strings[start.row] = strings

    def ends(self, row: int, token_id: int, num_outputs: int) -> bool:
        """Whether `token_id`, the row's output token number `num_outputs` (from 1), ends its request."""
        strings = self._strings.get(row)
        has_string = strings is not None and strings.push(token_id)
        if token_id in self._token_ids[row]:
            return num_outputs > self._min_tokens[row]
        return has_string and num_outputs >= self._min_tokens[row]

    def _load_tokenizer(self) -> tuple[Decode, dict[str, int]]:
        """Its decode, and its special tokens' ids by name."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._model, trust_remote_code=False)
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(
                    f"stop strings need a tokenizer, and {self._model} has none that loads"
                ) from error
            added = self._tokenizer.added_tokens_decoder.items()
            self._special = {token.content: token_id for token_id, token in added if token.special}
        # The tokenizer behind the fast ones decodes several times faster than its wrapper.
        decode = (getattr(self._tokenizer, "backend_tokenizer", None) or self._tokenizer).decode
        return lambda token_ids: decode(token_ids, skip_special_tokens=True), self._special
