"""Use both lanes at once: 50 bulk requests with service_tier="flex", and chats that do not wait for them.

python examples/hybrid.py
"""

import asyncio
import os
import time

from openai import AsyncOpenAI

client = AsyncOpenAI(
    base_url=os.environ.get("BROS_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("BROS_API_KEY", "none"),
)


async def ask(model: str, text: str, tier: str) -> float:
    """Send a request, read its whole answer, and return the seconds to the first token."""
    started = time.perf_counter()
    messages = [{"role": "user", "content": text}]
    stream = await client.chat.completions.create(
        model=model, messages=messages, stream=True, service_tier=tier, max_tokens=64
    )
    first = None
    async for _ in stream:
        first = first or time.perf_counter() - started
    return first or 0.0


async def main() -> None:
    model = (await client.models.list()).data[0].id
    bulk = [asyncio.create_task(ask(model, f"Document {i}. What is this?", "flex")) for i in range(50)]
    while not all(task.done() for task in bulk):
        wait = await ask(model, "What can you do?", "default")
        print(
            f"{sum(task.done() for task in bulk)} of {len(bulk)} done; chat: first token after {wait:.3f} s"
        )
    await asyncio.gather(*bulk)


asyncio.run(main())
