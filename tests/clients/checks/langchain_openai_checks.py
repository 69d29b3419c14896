"""LangChain's `langchain-openai`: chats, structured output in its three modes, tools, and the Responses API."""
# /// script
# dependencies = ["langchain-openai==1.7.4"]
# ///

from __future__ import annotations

from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field, SecretStr
from service import API, INVOICE, KEY, MODEL, run_checks

SERVER: Any = {"base_url": API, "api_key": SecretStr(KEY), "model": MODEL, "max_retries": 0, "timeout": 120}
EXTRACT = f"Extract vendor, date, total and currency as JSON.\n\n{INVOICE}"


class Invoice(BaseModel):
    """The fields of an invoice."""

    vendor: str = Field(description="Name of the vendor", max_length=40)
    total: str = Field(max_length=20)
    currency: str = Field(max_length=3)


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Return the weather in a city."""
    return f"12 C in {city}"


def check_chat() -> None:
    model = ChatOpenAI(**SERVER, temperature=0)
    answer = model.invoke("What can you do?")
    assert answer.content and answer.usage_metadata
    assert "".join(str(piece.content) for piece in model.stream("What can you do?")) == answer.content
    assert len(model.batch(["What can you do?"] * 20, config={"max_concurrency": 20})) == 20


def check_completions() -> None:
    assert OpenAI(**SERVER, temperature=0).invoke("Invoice")


def check_logprobs() -> None:
    answer = ChatOpenAI(**SERVER).bind(logprobs=True, max_tokens=2).invoke("What can you do?")
    assert answer.response_metadata["logprobs"]["content"]


def _check_structured(method: Any) -> None:
    answer = ChatOpenAI(**SERVER).with_structured_output(Invoice, method=method).invoke(EXTRACT)
    assert isinstance(answer, Invoice)


def check_structured_output_json_schema() -> None:
    _check_structured("json_schema")


def check_structured_output_function_calling() -> None:
    _check_structured("function_calling")


def check_structured_output_json_mode() -> None:
    # JSON of any form: whether it fits Invoice is up to the model.
    structured = ChatOpenAI(**SERVER).with_structured_output(Invoice, method="json_mode", include_raw=True)
    answer: Any = structured.invoke(EXTRACT)
    assert answer["raw"].content.startswith("{")


def check_bind_tools() -> None:
    model = ChatOpenAI(**SERVER, max_completion_tokens=200)
    answer = model.bind_tools([get_weather], tool_choice="any").invoke("Hello")
    assert isinstance(answer, AIMessage) and answer.tool_calls[0]["name"] == "get_weather"
    call = answer.tool_calls[0]
    history = [
        HumanMessage("Hello"),
        answer,
        ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]),
    ]
    model.bind_tools([get_weather]).invoke(history)
    whole: Any = None
    for piece in model.bind_tools([get_weather], tool_choice="get_weather").stream("Hello"):
        whole = piece if whole is None else whole + piece
    assert "city" in whole.tool_calls[0]["args"]


def check_responses() -> None:
    model = ChatOpenAI(**SERVER, use_responses_api=True)
    answer = model.invoke("What can you do?")
    assert answer.text
    assert "".join(piece.text for piece in model.stream("What can you do?"))
    assert isinstance(model.with_structured_output(Invoice).invoke(EXTRACT), Invoice)
    called = model.bind_tools([get_weather], tool_choice="any").invoke("Hello")
    assert isinstance(called, AIMessage) and called.tool_calls[0]["name"] == "get_weather"


def check_embeddings() -> None:
    # With the length check, the client would ask tiktoken for the tokenizer of the model.
    server = {name: value for name, value in SERVER.items() if name != "timeout"}
    embeddings = OpenAIEmbeddings(**server, check_embedding_ctx_length=False)
    first, second = embeddings.embed_documents(["one", "two"])
    assert first != second and embeddings.embed_query("one") == first


if __name__ == "__main__":
    run_checks(globals())
