"""The tokens of a model as grammars see them: their bytes, and which of them are special or end an output."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.grammars.compiling import UnusableGrammar

if TYPE_CHECKING:
    from llguidance import LLTokenizer


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What grammars need to know of a model: its tokenizer as JSON text, the number of its logits, and its end tokens.

    If the model has no end token, a special token stands for the end in masks. `mask_bits` is the number of bits of a
    mask, which may exceed the number of logits, since the tokenizer may know more tokens.
    """

    tokenizer_json: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    mask_bits: int

    @staticmethod
    def of(tokenizer: Any, vocab_size: int, eos_token_ids: Collection[int]) -> Vocabulary:
        """The vocabulary of a transformers tokenizer. Raises ValueError if it is of a kind that has no fast form."""
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is None:
            raise ValueError(
                "grammars need a tokenizer with a tokenizer.json, which this model does not have"
            )
        # Through JSON, because the tokenizer that is in use pads and truncates as its user likes. Tokens that only
        # tokenizer_config.json names are among these, too.
        copy = type(fast).from_str(fast.to_str())
        copy.no_padding()
        copy.no_truncation()
        mask_bits = max(vocab_size, copy.get_vocab_size(with_added_tokens=True))
        ends = tuple(sorted(eos_token_ids))
        if not ends:
            added = copy.get_added_tokens_decoder()
            ends = (min((token_id for token_id, token in added.items() if token.special), default=0),)
        return Vocabulary(copy.to_str(), vocab_size, ends, mask_bits)

    def build(self) -> LLTokenizer:
        """The tokenizer of llguidance. Takes a second for 150,000 tokens."""
        # Imported where it is used, so that a runner works without it.
        from llguidance import LLTokenizer

        return LLTokenizer(self.tokenizer_json, n_vocab=self.mask_bits, eos_token=list(self.eos_token_ids))


class GrammarTokenizer:
    """The tokenizer with which grammars are compiled, loaded when it is first needed. Any thread may use it.

    `vocabulary` is called once; if it raises ValueError, no grammar can be used. The model has `vocab_size` logits.
    """

    def __init__(self, vocabulary: Callable[[], Vocabulary], vocab_size: int) -> None:
        self._load = vocabulary
        self._num_words_without = -(-vocab_size // 32)  # a tokenizer
        self._loading = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._vocabulary: Vocabulary | None = None
        self._unusable: str | None = None

    def loaded(self) -> LLTokenizer:
        """The tokenizer, loaded now if it has not been. Raises UnusableGrammar if the model's is of no use."""
        with self._loading:
            if self._unusable is None and self._tokenizer is None:
                try:
                    self._vocabulary = self._load()
                    self._tokenizer = self._vocabulary.build()
                except (ValueError, OSError) as error:
                    self._unusable = str(error)
            if self._tokenizer is None:
                raise UnusableGrammar(self._unusable or "the tokenizer cannot be loaded")
            return self._tokenizer

    @property
    def num_mask_words(self) -> int:
        """The number of 32-bit words of a mask, once it is loaded."""
        return -(-self._vocabulary.mask_bits // 32) if self._vocabulary else self._num_words_without

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that stand for the end in masks, once it is loaded."""
        return self._vocabulary.eos_token_ids if self._vocabulary else ()

    def save(self, path: Path) -> None:
        """Write the vocabulary, once it is loaded, for the judge to read."""
        assert self._vocabulary is not None
        path.write_text(json.dumps(dataclasses.asdict(self._vocabulary)))
