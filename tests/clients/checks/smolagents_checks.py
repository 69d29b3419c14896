"""smolagents: chats, structured output, and an agent that calls tools."""
# /// script
# dependencies = ["smolagents[openai]==1.26.0"]
# ///

from __future__ import annotations

import json

from service import API, INVOICE, KEY, MODEL, run_checks
from smolagents import ChatMessage, OpenAIModel, ToolCallingAgent, tool
from smolagents.memory import ActionStep

model = OpenAIModel(MODEL, api_base=API, api_key=KEY, max_tokens=300)
SCHEMA = {
    "type": "object",
    "properties": {"vendor": {"type": "string", "maxLength": 40}},
    "required": ["vendor"],
    "additionalProperties": False,
}


@tool
def get_weather(city: str) -> str:
    """Return the weather in a city.

    Args:
        city: The name of the city. (choices: ["Paris", "Rome"])
    """
    return f"12 C in {city}"


def message(text: str) -> ChatMessage:
    return ChatMessage.from_dict({"role": "user", "content": [{"type": "text", "text": text}]})


def check_chat() -> None:
    assert model.generate([message("What can you do?")]).content
    assert "".join(piece.content or "" for piece in model.generate_stream([message("What can you do?")]))


def check_structured_output() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "invoice", "schema": SCHEMA}}
    answer = model.generate([message(f"Extract.\n\n{INVOICE}")], response_format=schema)
    assert set(json.loads(answer.content)) == {"vendor"}


def check_agent() -> None:
    """Each step must be a call of one of the tools; whether they are the right ones is up to the model."""
    agent = ToolCallingAgent(tools=[get_weather], model=model, max_steps=2, verbosity_level=0)
    agent.run("What is the weather in Paris?")
    steps = [step for step in agent.memory.steps if isinstance(step, ActionStep)]
    called = [call.name for step in steps for call in step.tool_calls or ()]
    assert called and set(called) <= {"get_weather", "final_answer"}, [step.error for step in steps]


if __name__ == "__main__":
    run_checks(globals())
