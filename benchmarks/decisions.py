"""How many documents per second can be asked eight questions, as decisions and as answers in constrained JSON?

    python -m benchmarks.decisions [--model-dir DIR] [--documents 200] [--rounds 3]

Both ask the same questions about the same documents, with 32 requests in flight, in turns on one server. A decision
reads the probabilities of the labels after one pass over the document; JSON is generated token by token, and its schema
allows only the eight answers. Prompts differ from round to round, so that none is in the prefix cache. Writes a JSON
file.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.machine import write_result
from benchmarks.serving.__main__ import until_ready
from benchmarks.serving.client import Client
from benchmarks.serving.load import FIRST_TEXT_ID, Load
from benchmarks.serving.own_server import Server, own_server
from bros_batch.demo.documents import HELD_OUT_SEED, generate_documents
from bros_batch.settings import DEMO_MODEL_DIR

IN_FLIGHT = 32
QUESTIONS = {
    "invoice": "The document is an invoice.",
    "paid": "The document has been paid.",
    "euro": "The amount is in euros.",
    "large": "The amount is above 1000.",
    "old": "The document is older than a year.",
    "person": "The document names a person.",
    "address": "The document has an address.",
    "urgent": "The document asks for a quick reply.",
}
KINDS = ("decisions", "JSON")


def decision_body(text: str) -> dict[str, Any]:
    questions = [
        {"type": "predicate", "name": name, "instructions": question} for name, question in QUESTIONS.items()
    ]
    return {"model": "model", "input": text, "questions": questions}


def chat_body(text: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in QUESTIONS},
        "required": list(QUESTIONS),
        "additionalProperties": False,
    }
    asked = "\n".join(f"{name}: {question}" for name, question in QUESTIONS.items())
    return {
        "model": "model",
        "messages": [{"role": "user", "content": f"{text}\n\nWhich of these are true?\n{asked}"}],
        "temperature": 0,
        "max_tokens": 400,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answers", "schema": schema}},
    }


async def measure(server: Server, num_documents: int, rounds: int) -> dict[str, list[float]]:
    """Return documents per second of each kind, by round."""
    await until_ready(Client(server.url, "model"), server, Load(token_ids=(FIRST_TEXT_ID, 1536)))
    texts = [
        each.text for each in generate_documents(num_documents * rounds * 2 + IN_FLIGHT, HELD_OUT_SEED + 9)
    ]
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    limits = httpx.Limits(max_connections=IN_FLIGHT)
    async with httpx.AsyncClient(trust_env=False, timeout=300, limits=limits) as http:

        async def ask(kind: str, text: str) -> None:
            if kind == "JSON":
                response = await http.post(f"{server.url}/v1/chat/completions", json=chat_body(text))
            else:
                response = await http.post(f"{server.url}/v1/decisions", json=decision_body(text))
            response.raise_for_status()

        for kind in KINDS:
            await asyncio.gather(*(ask(kind, texts.pop()) for _ in range(IN_FLIGHT // 2)))
        for number in range(rounds):
            for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
                mine = [texts.pop() for _ in range(num_documents)]
                begun_s = time.perf_counter()
                await asyncio.gather(*(ask(kind, text) for text in mine))
                found[kind].append(num_documents / (time.perf_counter() - begun_s))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, default=Path(DEMO_MODEL_DIR))
    parser.add_argument("--own", default="", metavar="FLAGS", help="flags of the engine")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with own_server(options.model_dir, "model", options.own) as server:
        found = asyncio.run(measure(server, options.documents, options.rounds))
    for kind in KINDS:
        rates = ", ".join(f"{rate:.1f}" for rate in found[kind])
        print(f"{kind:10} {median(found[kind]):8.1f} documents/s  ({rates})")
    ratio = median(found["decisions"]) / median(found["JSON"])
    print(f"decisions / JSON: {ratio:.2f}")
    result = {
        "model": options.model_dir.name,
        "documents": options.documents,
        "documents_per_s": found,
        "ratio": ratio,
    }
    print(write_result(options.out, "decisions", result))


if __name__ == "__main__":
    main()
