"""LlamaIndex with its `OpenAILike` model: chats, structured answers, and tools."""
# /// script
# dependencies = ["llama-index-llms-openai-like==0.8.1"]
# ///

from typing import Any, Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field
from service import API, INVOICE, KEY, MODEL, run_checks

llm = OpenAILike(
    model=MODEL,
    api_base=API,
    api_key=KEY,
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=8192,
    max_tokens=200,
    timeout=120,
    max_retries=0,
)


class Invoice(BaseModel):
    """The fields of an invoice."""

    vendor: str = Field(max_length=40)
    total: str = Field(max_length=20)


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Return the weather in a city."""
    return f"12 C in {city}"


def check_chat() -> None:
    messages = [ChatMessage(role="user", content="What can you do?")]
    assert llm.chat(messages).message.content
    assert "".join(piece.delta or "" for piece in llm.stream_chat(messages))
    assert llm.complete("What can you do?").text


def check_structured_output() -> None:
    prompt = PromptTemplate("Extract the fields.\n\n{text}")
    answer: Any = llm.structured_predict(Invoice, prompt, text=INVOICE)
    assert isinstance(answer, Invoice)


def check_native_structured_output() -> None:
    native = llm.model_copy(update={"should_use_structured_outputs": True})
    answer: Any = native.as_structured_llm(Invoice).complete(f"Extract the fields.\n\n{INVOICE}").raw
    assert isinstance(answer, Invoice)


def check_tools() -> None:
    tool = FunctionTool.from_defaults(get_weather)
    answer = llm.chat_with_tools([tool], user_msg="Hello", tool_required=True)
    (call, *_) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "get_weather" and "city" in call.tool_kwargs


if __name__ == "__main__":
    run_checks(globals())
