"""Does one request harm another? A thousand poisoned requests beside five thousand good lines and a running chat.

    python -m benchmarks.poison [--lines 5000] [--each 50]

There are twenty kinds of poison; each kind, let through, ends an engine, stops a lane or spoils a step. Those that are
bodies are sent half as chats, half as lines of the job; the rest goes straight into the engine's socket and Redis. The
services run the demo model as `bros-batch up` starts them. The result: good lines that failed, chats whose tokens
differed from those of the same chat alone, and processes that ended. Writes a JSON file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from redis import Redis

from benchmarks.machine import write_result
from benchmarks.own_up import own_up
from bros_batch.settings import DEMO_MODEL_DIR
from engine.wire.framing import LENGTH_PREFIX, frame
from engine.wire.item_messages import ItemRequest, encode
from engine.wire.protocol import Hello, Submit
from engine.wire.redis_keys import items_key
from engine.wire.request_terms import Sampling

CHAT = "/v1/chat/completions"
VOCAB_SIZE = 1536
SAY = [{"role": "user", "content": "Invoice 7\nTotal: 12.50 EUR\n\nWhat is the total?"}]
BODIES: dict[str, dict[str, Any]] = {
    "foreign stop token": {"min_tokens": 1, "stop_token_ids": [151645]},
    "negative stop token": {"min_tokens": 1, "stop_token_ids": [-1]},
    "foreign bias": {"logit_bias": {"191222": -100}},
    "infinite bias": {"logit_bias": {"7": 1e999}},
    "huge bias": {"logit_bias": {"7": 1e308, "8": -1e308}},
    "many biases": {"logit_bias": {str(i): 1 for i in range(20_000)}},
    "denormal temperature": {"temperature": 5e-324},
    "tiny temperature": {"temperature": 1e-50, "top_p": 1e-50},
    "not a number": {"frequency_penalty": float("nan")},
    "tiny repetition penalty": {"repetition_penalty": 5e-324},
    "huge seed": {"seed": 10**40},
    "endless choices": {"n": 10**9},
    "impossible SLO": {"slo": {"ttft_ms": 5e-324, "tpot_ms": 5e-324}},
    "messages that are numbers": {"messages": [0] * 20_000},
    "half a character": {"messages": [{"role": "user", "content": "\ud800"}]},
    "prompt beyond the context": {"messages": [{"role": "user", "content": "word " * 20_000}]},
}
OTHERS = (
    "foreign token in a frame",
    "broken frame",
    "foreign stop token in the stream",
    "garbage in the stream",
)


def write_job(path: Path, num_good: int, num_each: int) -> None:
    """Write good lines and poisoned ones in a random order. Their ids say which they are."""
    lines: list[tuple[str, dict[str, Any]]] = []
    for number in range(num_good):
        content = f"Invoice {number}\nTotal: {number}.50 EUR\n\nWhat is the total?"
        lines.append((f"good-{number}", {"messages": [{"role": "user", "content": content}]}))
    for kind, body in BODIES.items():
        lines += [(f"{kind}-{number}", body) for number in range(num_each)]
    random.Random(1).shuffle(lines)
    with path.open("w") as file:
        for custom_id, body in lines:
            full = {"model": "m", "messages": SAY, "max_tokens": 8, "temperature": 0, **body}
            line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": full}
            file.write(json.dumps(line) + "\n")


async def chat(http: httpx.AsyncClient) -> str:
    """Return the text of a long greedy chat, which is streamed."""
    body = {
        "model": "m",
        "messages": SAY,
        "temperature": 0,
        "max_tokens": 150,
        "ignore_eos": True,
        "stream": True,
    }
    text = ""
    async with http.stream("POST", CHAT, json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
    return text


async def send_poison(http: httpx.AsyncClient, state: dict[str, Any], num_each: int) -> Counter[str]:
    """Send every kind in turn, and count the statuses of the answers per kind."""
    found: Counter[str] = Counter()
    redis = Redis(unix_socket_path=state["redis_url"].removeprefix("unix://"))
    stop = Sampling(max_tokens=2, min_tokens=1, stop_token_ids=(151645,))
    for number, kind in itertools.product(range(num_each), (*BODIES, *OTHERS)):
        if kind in BODIES:
            if number % 2:
                continue  # the other half are lines of the job
            body = {"model": "m", "messages": SAY, "max_tokens": 4, **BODIES[kind]}
            content = json.dumps(body).encode()
            answer = await http.post(CHAT, content=content, headers={"Content-Type": "application/json"})
            found[f"{kind}: {answer.status_code}"] += 1
            continue
        found[f"{kind}: sent"] += 1
        if kind.endswith("frame"):
            _, writer = await asyncio.open_unix_connection(state["engine_url"].removeprefix("unix://"))
            broken = LENGTH_PREFIX.pack(50) + b"\xc1" * 50
            foreign = frame(Submit("a", [5, 10**9], stop)) + frame(Submit("b", [5, VOCAB_SIZE], stop))
            writer.write(frame(Hello()) + (broken if kind == "broken frame" else foreign))
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            writer.close()
        elif kind.startswith("foreign"):
            item = ItemRequest(10**9 + number, 1, "batch_none", [5, 6], stop)
            redis.xadd(items_key("m"), {"p": encode(item), "i": item.item_id, "e": 1})
        else:
            redis.xadd(items_key("m"), {"p": b"\xc1garbage", "i": "9" * 31, "e": "1"})
    redis.close()
    return found


async def measure(state: dict[str, Any], data_dir: Path, num_good: int, num_each: int) -> dict[str, Any]:
    """Run the job, the chats and the poison at the same time, and compare with a chat alone."""
    path = data_dir.with_name("job.jsonl")
    write_job(path, num_good, num_each // 2)
    differing = chats = 0
    async with httpx.AsyncClient(base_url=state["url"], trust_env=False, timeout=120) as http:
        alone = await chat(http)
        file = await http.post("/v1/files", files={"file": path.open("rb")}, data={"purpose": "batch"})
        body = {
            "input_file_id": file.raise_for_status().json()["id"],
            "endpoint": CHAT,
            "completion_window": "24h",
        }
        batch = (await http.post("/v1/batches", json=body)).raise_for_status().json()
        started_s = time.perf_counter()
        poison = asyncio.create_task(send_poison(http, state, num_each))
        while batch["status"] not in ("completed", "failed", "expired") or not poison.done():
            chats += 1
            differing += await chat(http) != alone
            batch = (await http.get(f"/v1/batches/{batch['id']}")).raise_for_status().json()
        seconds = time.perf_counter() - started_s
        results: dict[str, str] = {}
        for name in ("output_file_id", "error_file_id"):
            if batch[name]:
                text = (await http.get(f"/v1/files/{batch[name]}/content")).raise_for_status().text
                for line in map(json.loads, filter(None, text.split("\n"))):
                    # A line that is not JSON has no id that could be read.
                    custom_id = line["custom_id"] or f"unreadable-{line['id']}"
                    results[custom_id] = "failed" if line["error"] else "succeeded"
    kinds = Counter(f"{key.rpartition('-')[0]}: {value}" for key, value in results.items())
    after = json.loads((data_dir / "run" / "up.json").read_text())["children"]
    return {
        "seconds": round(seconds, 1),
        "job": {"status": batch["status"], **batch["request_counts"]},
        "good_lines_failed": num_good - kinds["good: succeeded"],
        "chats": chats,
        "chats_that_differed": differing,
        "processes_that_ended": [name for name, pid in state["children"].items() if after.get(name) != pid],
        "lines": dict(sorted(kinds.items())),
        "sent": dict(sorted((await poison).items())),
        "num_poisoned": sum((await poison).values()) + sum(kinds.values()) - num_good,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=5000, help="good lines (%(default)s)")
    parser.add_argument("--each", type=int, default=50, help="poisoned requests of each kind (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bros-poison-") as name:
        data_dir = Path(name) / "data"
        flags = ("--model", str(DEMO_MODEL_DIR), "--served-model-name", "m")
        with own_up(data_dir, *flags) as state:
            result = asyncio.run(measure(state, data_dir, options.lines, options.each))
    print(json.dumps(result, indent=2))
    print(write_result(options.out, "poison", result))


if __name__ == "__main__":
    main()
