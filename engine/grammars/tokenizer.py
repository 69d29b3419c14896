"""The tokens of a model as grammars see them: their bytes, and which of them are special or end an output."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
