"""How many documents per second does a server extract eight fields from, each answer following one schema?

    python -m benchmarks.extraction [--model-dir DIR] [--own FLAGS] [--documents 192]
    python -m benchmarks.extraction --url http://127.0.0.1:8100 --model NAME
    python -m benchmarks.extraction --model-dir DIR --beside http://127.0.0.1:8100 --beside-pid PID

64 documents are in flight. `--url` measures a server that runs already; `benchmarks/peers.md` says how to run others.
All get the same requests, whose answers have no white space. With `--beside`, two servers run in turns of ten seconds,
each suspended while the other runs, so that changes of the machine's speed hit both. Writes JSON files.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.in_turns import in_turns
from benchmarks.machine import write_result
from benchmarks.serving.__main__ import until_ready
from benchmarks.serving.client import Client
from benchmarks.serving.load import FIRST_TEXT_ID, Load
from benchmarks.serving.own_server import Server, own_server
from bros_batch.demo.documents import HELD_OUT_SEED, generate_documents
from bros_batch.demo.prompts import EXTRACTION_PROMPT, EXTRACTION_SCHEMA
from bros_batch.settings import DEMO_MODEL_DIR

IN_FLIGHT = 64
NUM_WARM_UP = 8
# The demo's four fields, and as many that follow from them. All have an end, also where the weights are random.
EIGHT_FIELDS = {
    **EXTRACTION_SCHEMA,
    "properties": {
        "vendor": {"type": ["string", "null"], "maxLength": 48},
        "date": {"type": ["string", "null"], "format": "date"},
        "total": {"type": ["string", "null"], "pattern": r"^[0-9]{1,9}(\.[0-9]{2})?$"},
        "currency": {"type": ["string", "null"], "pattern": "^[A-Z]{3}$"},
        "has_vendor": {"type": "boolean"},
        "has_date": {"type": "boolean"},
        "has_total": {"type": "boolean"},
        "has_currency": {"type": "boolean"},
    },
    "required": [*EXTRACTION_SCHEMA["required"], "has_vendor", "has_date", "has_total", "has_currency"],
}


@dataclass(frozen=True, slots=True)
class Extraction:
    """What a server extracted: tokens are means per document."""

    documents_per_s: float
    prompt_tokens: float
    output_tokens: float


def body_of(text: str, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": EXTRACTION_PROMPT.format(text=text)}],
        "temperature": 0,
        "max_tokens": 160,
        "priority": 1,
        "structured_outputs": {"json": EIGHT_FIELDS, "disable_any_whitespace": True},
    }


async def extract(server: Server, model: str, num_documents: int) -> Extraction:
    """Extract from documents once the server answers. The first few, for which it compiles, do not count."""
    await warm_up(server, model)
    _, elapsed_s, tokens = await _extract(server, model, num_documents)
    return _summary(elapsed_s, tokens)


async def extract_in_turns(
    servers: Mapping[str, Server], model: str, num_documents: int, turn_s: float
) -> dict[str, Extraction]:
    """Extract from the same documents with several servers that run in turns: time counts while a server runs."""
    for server in servers.values():
        await warm_up(server, model)
    with in_turns({label: list(server.pids) for label, server in servers.items()}, turn_s) as turns:

        async def one(label: str) -> tuple[float, float, list[tuple[int, int]]]:
            try:
                return await _extract(servers[label], model, num_documents)
            finally:
                turns.end(label)

        measured = dict(zip(servers, await asyncio.gather(*map(one, servers)), strict=True))
    return {
        label: _summary(turns.active_s(label, begun_s, begun_s + elapsed_s), tokens)
        for label, (begun_s, elapsed_s, tokens) in measured.items()
    }


async def warm_up(server: Server, model: str) -> None:
    await until_ready(Client(server.url, model), server, Load(token_ids=(FIRST_TEXT_ID, 1536)))
    await _answer_all(server, model, _texts(NUM_WARM_UP))


async def _extract(
    server: Server, model: str, num_documents: int
) -> tuple[float, float, list[tuple[int, int]]]:
    """Return when this began, how many seconds it took, and (prompt, output) tokens per document."""
    texts = _texts(NUM_WARM_UP + num_documents)[NUM_WARM_UP:]
    begun_s = time.perf_counter()
    tokens = await _answer_all(server, model, texts)
    return begun_s, time.perf_counter() - begun_s, tokens


def _texts(num_documents: int) -> list[str]:
    return [each.text for each in generate_documents(num_documents, HELD_OUT_SEED + 3)]


async def _answer_all(server: Server, model: str, texts: list[str]) -> list[tuple[int, int]]:
    # A queue in the client would take more of the cores than the server's web process.
    in_flight = asyncio.Semaphore(IN_FLIGHT)
    async with httpx.AsyncClient(trust_env=False, timeout=300) as http:

        async def answer(text: str) -> tuple[int, int]:
            async with in_flight:
                response = await http.post(f"{server.url}/v1/chat/completions", json=body_of(text, model))
            if response.is_error:
                raise RuntimeError(f"HTTP {response.status_code}: {response.text[:500]}")
            usage = response.json()["usage"]
            return usage["prompt_tokens"], usage["completion_tokens"]

        return await asyncio.gather(*map(answer, texts))


def _summary(elapsed_s: float, tokens: list[tuple[int, int]]) -> Extraction:
    prompt_tokens, output_tokens = map(sum, zip(*tokens, strict=True))
    return Extraction(len(tokens) / elapsed_s, prompt_tokens / len(tokens), output_tokens / len(tokens))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--model", default="model", help="by which name it serves the model")
    parser.add_argument("--model-dir", type=Path, default=Path(DEMO_MODEL_DIR))
    parser.add_argument("--own", default="", metavar="FLAGS", help="flags of the engine")
    parser.add_argument("--documents", type=int, default=192)
    parser.add_argument("--label", default="bros")
    parser.add_argument("--beside", metavar="URL", help="another server, measured in turns with the first")
    parser.add_argument(
        "--beside-pid", type=int, metavar="PID", help="its process, to be suspended in between"
    )
    parser.add_argument("--beside-label", default="vllm", metavar="LABEL")
    parser.add_argument("--turn-s", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.beside and (options.url or not options.beside_pid):
        parser.error("--beside needs --beside-pid, and goes with --model-dir, whose processes are known")
    with contextlib.ExitStack() as stack:
        if options.url:
            server = Server(options.url)
        else:
            server = stack.enter_context(own_server(options.model_dir, options.model, options.own))
        if options.beside:
            servers = {
                options.label: server,
                options.beside_label: Server(options.beside, [options.beside_pid]),
            }
            found = asyncio.run(extract_in_turns(servers, options.model, options.documents, options.turn_s))
        else:
            found = {options.label: asyncio.run(extract(server, options.model, options.documents))}
    for label, each in found.items():
        print(
            f"{label:8} {each.documents_per_s:8.2f} documents/s, each {each.prompt_tokens:.0f} prompt tokens and "
            f"{each.output_tokens:.0f} output tokens"
        )
        result = {
            "documents": options.documents,
            "flags": options.own,
            "in_turns": bool(options.beside),
            **asdict(each),
        }
        print(write_result(options.out, f"extraction-{label}", result))


if __name__ == "__main__":
    main()
