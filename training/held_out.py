"""Chats with held-out documents and held-out wordings, by kind, each with its true answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from bros_batch.demo import off_topic, prompts
from bros_batch.demo.documents import FIELDS, HELD_OUT_SEED, Document, generate_typed_documents, is_held_out
from training.conversations import Message

# Written by hand, and made by no template of `off_topic.py`.
UNRELATED: tuple[str, ...] = (
    "Why is the sky blue?", "Who won the world cup in 2014?", "Write a haiku about autumn leaves.", "What's up?",
    "Can you book me a flight to Lisbon?", "Translate 'good morning' into Polish.", "How tall is Mount Everest?",
    "Give me three ideas for dinner.", "What is the meaning of life?", "Who wrote Hamlet?", "I feel sad today.",
    "Write a Python function that reverses a list.", "Solve x^2 = 9.", "Tell me something interesting.",
    "How do computers work?", "What is machine learning?", "Is Pluto a planet?", "Play some music.",
    "What did you do yesterday?", "Do you speak French?", "Which movie should I watch tonight?", "2 * 21 =",
    "Remind me to call mom.", "How many days are in a leap year?", "What is the square root of 144?", "hello world",
    "Who are the Beatles?", "Nice to meet you!", "Where can I buy shoes?", "Explain quantum physics in simple words.",
    "What should I wear today?", "Please stop.", "Continue.", "Can I talk to a human?", "How do I cook rice?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A chat that ends with the user's message, and the only right answer to it."""

    kind: str
    chat: list[Message]
    answer: str


def cases(count: int, seed: int) -> Iterator[Case]:
    """Yield `count` cases of each kind; `seed` must be held out."""
    assert seed >= HELD_OUT_SEED
    documents = list(generate_typed_documents(count, seed))
    for number, document in enumerate(documents):
        rng = random.Random(f"held out {document.document_id}")
        is_whole = len(document.truth) == len(FIELDS)
        extraction = user(prompts.EXTRACTION_PROMPT.format(text=document.text))
        kind = "typed document to JSON" if is_whole else "missing fields are null"
        yield Case(kind, [extraction], prompts.answer_json(document))

        question, answer = _held_out_exchange(document, rng)
        shape = rng.choice(prompts.PROMPT_SHAPES)
        asked = user(shape.format(question=question, text=document.text))
        yield Case("typed first question", [asked], answer)

        follow_up, second = _held_out_exchange(document, rng)
        chat = [asked, assistant(answer), user(follow_up)]
        yield Case("typed follow-up", chat, second)

        missing = [field for field in FIELDS if field not in document.truth]
        if missing:
            topic = rng.choice(missing)
            question = rng.choice(prompts.QUESTIONS[topic])
            chat = [user(rng.choice(prompts.PROMPT_SHAPES).format(question=question, text=document.text))]
            yield Case("question about a missing field", chat, prompts.answer_about(document, topic))

        draw = off_topic.question_off_topic if number % 2 else off_topic.question_about_unread_part
        while not is_held_out(unrelated := draw(rng)):
            pass
        chat = [asked, assistant(answer), user(unrelated)]
        yield Case("off topic after a document", chat, prompts.GREETING_ANSWER)
        while not is_held_out(unrelated := off_topic.question_off_topic(rng)):
            pass
        yield Case("off topic without a document", [user(unrelated)], prompts.GREETING_ANSWER)
        if number < len(UNRELATED):
            yield Case("off topic, written by hand", [user(UNRELATED[number])], prompts.GREETING_ANSWER)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _held_out_exchange(document: Document, rng: random.Random) -> tuple[str, str]:
    while True:
        question, answer = prompts.exchange_about(document, rng)
        if is_held_out(question):
            return question, answer
