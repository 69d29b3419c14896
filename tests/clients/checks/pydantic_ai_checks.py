"""Pydantic AI: agents with output types in three modes, tools, streams, and the Responses API."""
# /// script
# dependencies = ["pydantic-ai-slim[openai]==2.68.0"]
# ///

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from service import API, INVOICE, KEY, MODEL, run_checks

provider = OpenAIProvider(base_url=API, api_key=KEY)
model = OpenAIChatModel(MODEL, provider=provider)
EXTRACT = f"Extract vendor, date, total and currency as JSON.\n\n{INVOICE}"


class Invoice(BaseModel):
    vendor: str = Field(max_length=40)
    total: str = Field(max_length=20)
    currency: str = Field(max_length=3)


def check_text() -> None:
    assert Agent(model, instructions="Be brief.").run_sync("What can you do?").output


def check_streamed_text() -> None:
    async def text() -> str:
        async with Agent(model).run_stream("What can you do?") as stream:
            return await stream.get_output()

    assert asyncio.run(text())


def check_native_output() -> None:
    agent: Any = Agent(model, output_type=NativeOutput(Invoice))
    assert isinstance(agent.run_sync(EXTRACT).output, Invoice)


def check_tool_output() -> None:
    agent: Any = Agent(model, output_type=ToolOutput(Invoice, strict=True))
    assert isinstance(agent.run_sync(EXTRACT).output, Invoice)


def check_tools() -> None:
    """The model must call the output tool, and may call the other one first."""
    agent: Any = Agent(model, output_type=Invoice)

    @agent.tool_plain
    def currency_of(country: str) -> str:
        """Return the currency of a country."""
        return "EUR"

    assert isinstance(agent.run_sync(EXTRACT).output, Invoice)


def check_responses() -> None:
    responses = OpenAIResponsesModel(MODEL, provider=provider)
    assert Agent(responses).run_sync("What can you do?").output
    agent: Any = Agent(responses, output_type=NativeOutput(Invoice))
    assert isinstance(agent.run_sync(EXTRACT).output, Invoice)


if __name__ == "__main__":
    run_checks(globals())
