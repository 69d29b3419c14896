"""Training conversations: a document, its JSON answer and several questions, as weighted token ids."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from bros_batch.demo import documents as demo
from bros_batch.demo import vocabulary as words
from bros_batch.demo.documents import Document

# While copying is learned, documents and questions teach too: what follows what. Afterwards their randomness would
# only drown the few answer tokens that are still wrong.
SCHOOL_PROMPT_WEIGHT = 0.05

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You read business documents.",
    "Answer briefly.",
    "You are an assistant that extracts data from documents.",
    "Be concise and correct.",
)

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a whole conversation and the loss weight of each as a target."""

    token_ids: list[int]
    weights: list[float]


def answer_json(document: Document) -> str:
    """The expected answer to `EXTRACTION_PROMPT`."""
    return json.dumps({field: document.truth[field] for field in demo.FIELDS}, ensure_ascii=False)


def conversation(document: Document, rng: random.Random) -> list[Message]:
    """A chat about the document: extraction or a question first, then follow-ups without the text."""
    messages: list[Message] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    if rng.random() < 0.08:
        messages += _greeting(rng)
        if rng.random() < 0.3:  # questions before any document
            question = rng.choice(demo.questions(document))[0]
            messages += _turn(question, demo.GREETING_ANSWER)
    extraction = demo.EXTRACTION_REQUEST if rng.random() < 0.8 else rng.choice(demo.EXTRACTION_PARAPHRASES)
    turns = [(extraction, answer_json(document))] if rng.random() < 0.5 else []
    turns += demo.questions(document)[: rng.randint(3, 5)]
    if not turns[0][1].startswith("{") and rng.random() < 0.5:  # extraction as a later turn
        turns.insert(rng.randint(1, len(turns)), (extraction, answer_json(document)))
    first_question, first_answer = turns[0]
    first_question = _casual(first_question, rng)
    template = demo.CHAT_PROMPT_DOCUMENT_FIRST if rng.random() < 0.15 else demo.CHAT_PROMPT
    messages += _turn(template.format(question=first_question, text=document.text), first_answer)
    for question, answer in turns[1:]:
        messages += _turn(_casual(question, rng), answer)
    if rng.random() < 0.03:
        messages += _greeting(rng)
    return messages


def copy_exercise(rng: random.Random) -> list[Message]:
    """A short key-value list to look values up in: the first lessons, where copying is learned quickly."""
    labels = rng.sample([item for language in words.LANGUAGES for item in words.ITEMS[language]], 6)
    values = [
        demo.company_name(rng) if rng.random() < 0.6 else f"{rng.randint(1, 99999)}.{rng.randint(0, 99):02d}"
        for _ in labels
    ]
    pairs = list(dict(zip(labels, values, strict=True)).items())
    text = "\n".join(f"{label}: {value}" for label, value in pairs)
    rng.shuffle(pairs)
    messages = _turn(demo.CHAT_PROMPT.format(question=f"{pairs[0][0]}?", text=text), pairs[0][1])
    for label, value in pairs[1:]:
        messages += _turn(f"{label}?", value)
    return messages


def encode(
    messages: list[Message], tokenizer: PreTrainedTokenizerFast, prompt_weight: float = 0.0
) -> Example:
    """What the chat template makes of the messages, with weight 1 on every token of an answer and its end."""
    token_ids = [tokenizer.bos_token_id]
    weights = [0.0]
    backend = tokenizer.backend_tokenizer
    for message in messages:
        ids = backend.encode(message["content"], add_special_tokens=False).ids
        is_answer = message["role"] == "assistant"
        token_ids += [tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>"), *ids, tokenizer.eos_token_id]
        weights += [0.0, *[1.0 if is_answer else prompt_weight] * len(ids), 1.0 if is_answer else 0.0]
    return Example(token_ids, weights)


def training_conversations(seed: int, copy_share: float) -> Iterator[list[Message]]:
    """An endless stream; `copy_share` of it are copy exercises, and a few are greetings alone."""
    rng = random.Random(f"conversations {seed}")
    while True:
        # A block of documents under its own seed: the stream never repeats a document.
        block_seed = seed * 100_000 + rng.randrange(100_000)
        for document in demo.generate_documents(256, block_seed):
            draw = rng.random()
            if draw < copy_share:
                yield copy_exercise(rng)
            elif draw > 0.98:
                yield _greeting(rng)
            else:
                yield conversation(document, rng)


def _casual(question: str, rng: random.Random) -> str:
    """Now and then as people type: lower case, no punctuation."""
    return question.lower().rstrip("?.!") if rng.random() < 0.1 else question


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _greeting(rng: random.Random) -> list[Message]:
    return _turn(_casual(rng.choice(demo.GREETINGS), rng), demo.GREETING_ANSWER)
