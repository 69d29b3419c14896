"""The demo model's tokenizer: byte-level BPE with single digits, trained on generated documents.

A space belongs to the *end* of the word before it ("GmbH " rather than " GmbH"). A name therefore has the same tokens
at the start of a line, after a label and after a quote in the JSON, and the model copies it by copying tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bros_batch.demo import prompts
from bros_batch.demo.documents import Document

VOCABULARY_SIZE = 1536
PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = [PAD, BOS, END, *(f"<|{role}|>" for role in ROLES)]

# One alternative per kind of piece: words, digits, JSON separators, rules, other signs, line breaks, other whitespace.
# A single space after a word or a sign belongs to it; `(?! )` keeps runs of spaces in one piece.
PIECES = (
    r"[\p{L}\p{M}]+(?: (?! ))?"
    r"|\p{N}"
    r'|\{"|": "|", "|"\}'
    r"|[-=.]{2,}(?: (?! ))?"
    r"|[^\s\p{L}\p{M}\p{N}](?: (?! ))?"
    r"|\n+|[^\S\n]+"
)

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
    "{{- eos_token -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(documents: Iterator[Document]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of `VOCABULARY_SIZE` tokens, special tokens first (pad 0, bos 1, end of message 2)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _texts(documents: Iterator[Document]) -> Iterator[str]:
    fixed_texts = [
        prompts.GREETING_ANSWER,
        *prompts.GREETINGS,
        prompts.EXTRACTION_REQUEST,
        *prompts.EXTRACTION_PARAPHRASES,
    ]
    # Repeat each fixed sentence often enough that its words become single tokens.
    for _ in range(50):
        yield from fixed_texts
    for document in documents:
        yield document.text
        yield prompts.answer_json(document)
        for question, answer in prompts.questions(document):
            yield question
            yield answer
