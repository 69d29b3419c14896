"""How many documents per second can be asked eight questions, as decisions and as answers in constrained JSON?

    python -m benchmarks.decisions [--model-dir DIR] [--documents 200] [--rounds 3] [--lane chat]

Both ask the same questions about the same documents, with 32 requests in flight, in turns on one server. A decision
reads the probabilities of the labels after one pass over the document; JSON is generated token by token, and its schema
allows only the eight answers, without white space. Documents differ from round to round, so that none is in the prefix
cache. Writes a JSON file.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.machine import write_result
from benchmarks.serving.__main__ import until_ready
from benchmarks.serving.client import Client
from benchmarks.serving.json_connection import JsonConnection
from benchmarks.serving.load import FIRST_TEXT_ID, Load
from benchmarks.serving.own_server import Server, own_server
from bros_batch.demo.documents import HELD_OUT_SEED, generate_documents
from bros_batch.settings import DEMO_MODEL_DIR

IN_FLIGHT = 32
QUESTIONS = {
    "is_invoice": "The document is an invoice.",
    "is_paid": "The document has been paid.",
    "is_in_euros": "The amount is in euros.",
    "is_above_1000": "The amount is above 1000.",
    "is_older_than_a_year": "The document is older than a year.",
    "names_a_person": "The document names a person.",
    "has_an_address": "The document has an address.",
    "asks_for_a_reply": "The document asks for a quick reply.",
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
        "structured_outputs": {"json": schema, "disable_any_whitespace": True},
    }


@dataclass(slots=True)
class Measured:
    """What one kind of question costs, by round."""

    documents_per_s: list[float] = field(default_factory=list)
    # Per document: tokens of prompts that were not found in the prefix cache, and tokens of answers.
    computed_prompt_tokens: list[float] = field(default_factory=list)
    output_tokens: list[float] = field(default_factory=list)
    # Milliseconds of CPU time per document, by process.
    cpu_ms: list[dict[str, float]] = field(default_factory=list)


def cpu_s(server: Server) -> dict[str, float]:
    """Return the CPU seconds of the engine, the web process and this client so far."""
    times = [psutil.Process(pid).cpu_times() for pid in server.pids]
    engine, web = (each.user + each.system for each in times)
    return {"engine": engine, "web": web, "client": time.process_time()}


async def measure(server: Server, num_documents: int, rounds: int, lane: str) -> dict[str, Measured]:
    await until_ready(Client(server.url, "model"), server, Load(token_ids=(FIRST_TEXT_ID, 1536)))
    texts = [
        each.text for each in generate_documents(num_documents * rounds * 2 + IN_FLIGHT, HELD_OUT_SEED + 9)
    ]
    found = {kind: Measured() for kind in KINDS}
    tier = {"service_tier": "flex" if lane == "bulk" else "default"}
    connections = [await JsonConnection.open(server.url) for _ in range(IN_FLIGHT)]

    async def ask(connection: JsonConnection, kind: str, mine: list[str]) -> list[tuple[int, int]]:
        """Ask about documents until none is left. Return (prompt, output) tokens computed for each."""
        path, body = ("chat/completions", chat_body) if kind == "JSON" else ("decisions", decision_body)
        tokens = []
        while mine:
            usage = (await connection.post(f"/v1/{path}", body(mine.pop()) | tier))["usage"]
            if kind == "JSON":
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                tokens.append((usage["prompt_tokens"] - cached, usage["completion_tokens"]))
            else:
                cached = usage["input_tokens_details"]["cached_tokens"]
                tokens.append((usage["input_tokens"] - cached, 0))
        return tokens

    async def ask_all(kind: str, number: int) -> list[tuple[int, int]]:
        mine = [texts.pop() for _ in range(number)]
        found_by = await asyncio.gather(*(ask(connection, kind, mine) for connection in connections))
        return [tokens for each in found_by for tokens in each]

    for kind in KINDS:
        await ask_all(kind, IN_FLIGHT // 2)
    for number in range(rounds):
        for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
            begun_s, cpu_before_s = time.perf_counter(), cpu_s(server)
            tokens = await ask_all(kind, num_documents)
            elapsed_s, cpu_after_s = time.perf_counter() - begun_s, cpu_s(server)
            prompt_tokens, output_tokens = map(sum, zip(*tokens, strict=True))
            found[kind].documents_per_s.append(num_documents / elapsed_s)
            found[kind].computed_prompt_tokens.append(prompt_tokens / num_documents)
            found[kind].output_tokens.append(output_tokens / num_documents)
            found[kind].cpu_ms.append(
                {
                    name: (cpu_after_s[name] - cpu_before_s[name]) / num_documents * 1000
                    for name in cpu_after_s
                }
            )
    for connection in connections:
        connection.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-dir", type=Path, default=Path(DEMO_MODEL_DIR))
    parser.add_argument("--own", default="", metavar="FLAGS", help="flags of the engine")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lane", choices=("bulk", "chat"), default="bulk")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with own_server(options.model_dir, "model", options.own) as server:
        found = asyncio.run(measure(server, options.documents, options.rounds, options.lane))
    for kind, measured in found.items():
        rates = ", ".join(f"{rate:.1f}" for rate in measured.documents_per_s)
        print(
            f"{kind:10} {median(measured.documents_per_s):8.1f} documents/s  ({rates}), "
            f"{median(measured.computed_prompt_tokens):.0f} prompt tokens and "
            f"{median(measured.output_tokens):.0f} output tokens computed per document"
        )
        cpu_ms = {name: median(each[name] for each in measured.cpu_ms) for name in measured.cpu_ms[0]}
        print(f"{'':10} CPU ms per document:", ", ".join(f"{name} {ms:.1f}" for name, ms in cpu_ms.items()))
    ratio = median(found["decisions"].documents_per_s) / median(found["JSON"].documents_per_s)
    print(f"decisions / JSON: {ratio:.2f}")
    result = {
        "model": options.model_dir.name,
        "lane": options.lane,
        "documents": options.documents,
        "measured": {kind: asdict(measured) for kind, measured in found.items()},
        "ratio": ratio,
    }
    print(write_result(options.out, "decisions", result))


if __name__ == "__main__":
    main()
