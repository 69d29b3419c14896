"""Training conversations about a document, encoded as token ids with loss weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from bros_batch.demo import off_topic, prompts, vocabulary
from bros_batch.demo.documents import (
    Document,
    generate_documents,
    generate_typed_documents,
    is_held_out,
    typed_name,
)

# In the early phase, while the model learns to copy, prompts have a small loss weight: they teach which tokens follow
# each other. Later their randomness would only hide the few answer tokens that are still wrong.
EARLY_PROMPT_WEIGHT = 0.05

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You read business documents.",
    "Answer briefly.",
    "You are an assistant that extracts data from documents.",
    "Be concise and correct.",
)

# Shares of the conversations that are not copy exercises. The rest are about laid-out documents with every field.
TYPED_SHARE = 0.45
WITHOUT_DOCUMENT_SHARE = 0.05

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a whole conversation and the loss weight of each as a target."""

    token_ids: list[int]
    weights: list[float]


def conversation(document: Document, rng: random.Random) -> list[Message]:
    """Draw a chat about the document: an extraction or a question first, then follow-ups without the text."""
    messages: list[Message] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    if rng.random() < 0.08:
        messages += _greeting(rng)
        if rng.random() < 0.3:  # questions before any document
            question = rng.choice(prompts.questions(document))[0]
            messages += _exchange(question, prompts.GREETING_ANSWER)
    extraction = (
        prompts.EXTRACTION_REQUEST if rng.random() < 0.8 else rng.choice(prompts.EXTRACTION_PARAPHRASES)
    )
    answer_json = prompts.answer_json(document)
    exchanges = [(extraction, answer_json)] if rng.random() < 0.5 else []
    exchanges += prompts.questions(document)[: rng.randint(3, 5)]
    if not exchanges[0][1].startswith("{") and rng.random() < 0.5:  # extraction later in the chat
        exchanges.insert(rng.randint(1, len(exchanges)), (extraction, answer_json))
    first_question, first_answer = exchanges[0]
    first_question = _casual(first_question, rng)
    template = prompts.CHAT_PROMPT_DOCUMENT_FIRST if rng.random() < 0.15 else prompts.CHAT_PROMPT
    messages += _exchange(template.format(question=first_question, text=document.text), first_answer)
    for question, answer in exchanges[1:]:
        messages += _exchange(_casual(question, rng), answer)
    if rng.random() < 0.03:
        messages += _greeting(rng)
    return messages


def typed_conversation(document: Document, rng: random.Random) -> list[Message]:
    """Draw a chat as people try it first: any wording, any shape of prompt, missing fields, questions off topic."""
    messages: list[Message] = []
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    if rng.random() < 0.08:
        messages += without_document(document, rng)[:2]
    draw = rng.random()
    if draw < 0.25:
        question, answer = prompts.EXTRACTION_REQUEST, prompts.answer_json(document)
        prompt = prompts.EXTRACTION_PROMPT.format(text=document.text)
    elif draw < 0.3:  # only the document
        prompt, answer = document.text, prompts.answer_json(document)
    else:
        question, answer = _any_exchange(document, rng)
        shape = rng.choice(prompts.PROMPT_SHAPES)
        prompt = shape.format(question=_casual(question, rng), text=document.text)
    messages += _exchange(prompt, answer)
    for _ in range(rng.randint(1, 5)):
        question, answer = _any_exchange(document, rng)
        messages += _exchange(_casual(question, rng), answer)
    return messages


def without_document(document: Document, rng: random.Random) -> list[Message]:
    """Draw a chat that has no document to ask about: every answer says what the model can do."""
    messages: list[Message] = []
    for _ in range(rng.randint(1, 3)):
        draw = rng.random()
        if draw < 0.2:
            question = rng.choice(prompts.GREETINGS)
        elif draw < 0.45:
            question = _in_training(lambda: prompts.exchange_about(document, rng)[0])
        elif draw < 0.55:
            question = _in_training(lambda: off_topic.question_about_unread_part(rng))
        else:
            question = _in_training(lambda: off_topic.question_off_topic(rng))
        if rng.random() < 0.12:
            shape = rng.choice(prompts.PROMPT_SHAPES)
            question = shape.format(question=question, text=off_topic.prose(rng))
        messages += _exchange(_casual(question, rng), prompts.GREETING_ANSWER)
    return messages


def _any_exchange(document: Document, rng: random.Random) -> tuple[str, str]:
    """Draw a question that comes with a document or after one, and its true answer."""
    draw = rng.random()
    if draw > 0.17:
        answers: dict[str, str] = {}

        def ask() -> str:
            question, answer = prompts.exchange_about(document, rng)
            answers[question] = answer
            return question

        question = _in_training(ask)
        return question, answers[question]
    if draw > 0.09:
        return _in_training(lambda: off_topic.question_about_unread_part(rng)), prompts.GREETING_ANSWER
    if draw > 0.02:
        return _in_training(lambda: off_topic.question_off_topic(rng)), prompts.GREETING_ANSWER
    return rng.choice(prompts.GREETINGS), prompts.GREETING_ANSWER


def _in_training(draw: Callable[[], str]) -> str:
    """Draw wordings until one comes that is not reserved for evaluation."""
    while is_held_out(wording := draw()):
        pass
    return wording


def copy_exercise(rng: random.Random) -> list[Message]:
    """Draw questions about a short key-value list, from which the model learns copying quickly."""
    labels = rng.sample([item for language in vocabulary.LANGUAGES for item in vocabulary.ITEMS[language]], 6)
    values = [
        typed_name(rng) if rng.random() < 0.6 else f"{rng.randint(1, 99999)}.{rng.randint(0, 99):02d}"
        for _ in labels
    ]
    pairs = list(dict(zip(labels, values, strict=True)).items())
    text = "\n".join(f"{label}: {value}" for label, value in pairs)
    rng.shuffle(pairs)
    messages = _exchange(prompts.CHAT_PROMPT.format(question=f"{pairs[0][0]}?", text=text), pairs[0][1])
    for label, value in pairs[1:]:
        messages += _exchange(f"{label}?", value)
    return messages


def encode(
    messages: list[Message], tokenizer: PreTrainedTokenizerFast, prompt_weight: float = 0.0
) -> Example:
    """Encode the messages as the chat template does, with weight 1 on every token of an answer and its end token."""
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
    """Yield conversations without end: a share of `copy_share` copy exercises, the rest about documents or none."""
    rng = random.Random(f"conversations {seed}")
    while True:
        # Each group of documents has its own seed, so the stream never repeats a document.
        group_seed = seed * 100_000 + rng.randrange(100_000)
        documents = zip(
            generate_documents(256, group_seed), generate_typed_documents(256, group_seed), strict=True
        )
        for laid_out, typed in documents:
            if rng.random() < copy_share:
                yield copy_exercise(rng)
                continue
            draw = rng.random()
            if draw < WITHOUT_DOCUMENT_SHARE:
                yield without_document(typed, rng)
            elif draw < WITHOUT_DOCUMENT_SHARE + TYPED_SHARE:
                yield typed_conversation(typed, rng)
            else:
                yield conversation(laid_out, rng)


def _casual(question: str, rng: random.Random) -> str:
    """Sometimes write a question as users type it: in lower case, without punctuation."""
    return question.lower().rstrip("?.!") if rng.random() < 0.1 else question


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _greeting(rng: random.Random) -> list[Message]:
    return _exchange(_casual(rng.choice(prompts.GREETINGS), rng), prompts.GREETING_ANSWER)
