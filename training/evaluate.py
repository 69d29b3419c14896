"""Measure a model on held-out documents: `python -m training.evaluate DIR --documents 500`.

The JSON is generated greedily and compared field by field; the answers to questions are right or wrong as a whole. No
document, vendor or wording of these seeds can occur in training (see `HELD_OUT_SEED` and `is_held_out`).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from bros_batch.demo import prompts
from bros_batch.demo.documents import FIELDS, HELD_OUT_SEED, Document, generate_documents
from training.conversations import Message
from training.exact import exact_shares
from training.held_out import Case, assistant, cases, user

# train.py selects checkpoints with documents of HELD_OUT_SEED, so evaluation uses other ones.
EVALUATION_SEED = HELD_OUT_SEED + 1
LONGEST_ANSWER_TOKENS = 96


@torch.no_grad()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, chats: list[list[Message]], batch_rows: int
) -> list[str]:
    """Return the greedy answer to each chat, in order. Prompts of similar length share a left-padded batch."""
    prompts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
    ]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_rows):
        rows = order[start : start + batch_rows]
        # The chat template has already written the special tokens.
        inputs = tokenizer(
            [prompts[row] for row in rows],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=LONGEST_ANSWER_TOKENS,
            do_sample=False,
        )
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text
    return answers


def extraction_shares(answers: list[str], documents: list[Document]) -> dict[str, float]:
    """Return the shares of answers with each field exact, with all fields exact, and with valid JSON."""
    right: Counter[str] = Counter()
    for answer, document in zip(answers, documents, strict=True):
        try:
            values = json.loads(answer)
        except json.JSONDecodeError:
            continue
        if not isinstance(values, dict):
            continue
        right["json"] += 1
        right["all fields"] += values == document.truth
        for field in FIELDS:
            right[field] += values.get(field) == document.truth[field]
    return {name: right[name] / len(documents) for name in (*FIELDS, "all fields", "json")}


def asked_cases(documents: list[Document]) -> Iterator[Case]:
    """Yield the questions about laid-out documents, with the document, after another question and after the JSON."""
    for document in documents:
        asked = prompts.questions(document)
        request = user(prompts.EXTRACTION_PROMPT.format(text=document.text))
        direct = user(prompts.CHAT_PROMPT.format(question=asked[0][0], text=document.text))
        yield Case("first question", [direct], asked[0][1])
        # The document came with the first question; the answer is found only in the document.
        yield Case("follow-up question", [direct, assistant(asked[0][1]), user(asked[1][0])], asked[1][1])
        after_json = [request, assistant(prompts.answer_json(document)), user(asked[2][0])]
        yield Case("question after JSON", after_json, asked[2][1])
    for greeting in prompts.GREETINGS:
        yield Case("greeting", [user(greeting)], prompts.GREETING_ANSWER)


def evaluate(
    directory: Path, dtype: torch.dtype, documents: list[Document], seed: int, batch_rows: int
) -> dict[str, float]:
    """Measure every share for one model in one precision."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()

    requests = [[user(prompts.EXTRACTION_PROMPT.format(text=document.text))] for document in documents]
    shares = extraction_shares(generate(model, tokenizer, requests, batch_rows), documents)

    questions = [*asked_cases(documents), *cases(len(documents), seed)]
    return shares | exact_shares(model, tokenizer, questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--documents", type=int, default=500)
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--batch-rows", type=int, default=100)
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"]
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.seed < HELD_OUT_SEED:
        parser.error(f"--seed must be at least {HELD_OUT_SEED}: smaller seeds are for training")
    torch.set_num_threads(arguments.threads)
    documents = list(generate_documents(arguments.documents, arguments.seed))
    for dtype in arguments.dtypes:
        started = time.monotonic()
        shares = evaluate(
            arguments.directory, getattr(torch, dtype), documents, arguments.seed, arguments.batch_rows
        )
        print(f"{dtype}, {len(documents)} documents, {time.monotonic() - started:.0f} s")
        for name, share in shares.items():
            print(f"  {name:<32}{share:8.2%}")


if __name__ == "__main__":
    main()
