"""How many documents per second does a server extract eight fields from, each answer following one schema?

    python -m benchmarks.extraction [--model-dir DIR] [--own FLAGS] [--documents 192]
    python -m benchmarks.extraction --url http://127.0.0.1:8100 --model NAME

64 documents are in flight. `--url` measures a server that runs already; `benchmarks/peers.md` says how to run others.
All get the same requests, whose answers have no white space. Writes a JSON file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

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
    texts = [each.text for each in generate_documents(num_documents + NUM_WARM_UP, HELD_OUT_SEED + 3)]
    await until_ready(Client(server.url, model), server, Load(token_ids=(FIRST_TEXT_ID, 1536)))
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

        await asyncio.gather(*map(answer, texts[:NUM_WARM_UP]))
        begun_s = time.perf_counter()
        tokens = await asyncio.gather(*map(answer, texts[NUM_WARM_UP:]))
        elapsed_s = time.perf_counter() - begun_s
    prompt_tokens, output_tokens = map(sum, zip(*tokens, strict=True))
    return Extraction(num_documents / elapsed_s, prompt_tokens / num_documents, output_tokens / num_documents)


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
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.url:
            server = Server(options.url)
        else:
            server = stack.enter_context(own_server(options.model_dir, options.model, options.own))
        found = asyncio.run(extract(server, options.model, options.documents))
    print(
        f"{options.label:8} {found.documents_per_s:8.2f} documents/s, each {found.prompt_tokens:.0f} prompt tokens and "
        f"{found.output_tokens:.0f} output tokens"
    )
    result = {"documents": options.documents, "flags": options.own, **asdict(found)}
    print(write_result(options.out, f"extraction-{options.label}", result))


if __name__ == "__main__":
    main()
