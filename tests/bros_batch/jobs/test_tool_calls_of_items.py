"""Lines of a batch with tools: their results have the calls and the reasoning, as a chat's answer does."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.wire.request_terms import PROMPT_TAIL_TOKENS
from tests.bros_batch.world import World, batch_line
from tests.factories_tools import make_tool_model

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
OUTPUT = 'Hm.</think>\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tool_model(tmp_path_factory.mktemp("model"), "hermes", reasoning="prompt_opens")


def test_the_result_of_a_line_has_calls_and_reasoning(world: World) -> None:
    lines = [
        batch_line("a", tools=TOOLS),
        batch_line("b"),
        batch_line("c", tools=TOOLS, tool_choice="required"),
    ]
    job_id = world.running(lines)
    world.prepare()
    taken = world.engine.take()
    by_line = {each.item.item_id: each.item.sampling for each in taken}
    grammars = [by_line[item_id].grammar for item_id in sorted(by_line)]
    assert grammars[:2] == [None, None]
    assert grammars[2] is not None and grammars[2].kind == "lark"
    world.engine.answer(taken, OUTPUT, prompt_tail=taken[0].item.token_ids[-PROMPT_TAIL_TOKENS:])
    world.record()
    world.finalize(job_id)
    results = world.file_lines(world.job(job_id).output_file_id)
    bodies = [line["response"]["body"] for line in results]
    messages = [body["choices"][0]["message"] for body in bodies]
    assert [message["reasoning_content"] for message in messages] == ["Hm."] * 3
    assert messages[0]["content"] is None and messages[1]["content"] == OUTPUT.partition("\n")[2]
    assert [body["choices"][0]["finish_reason"] for body in bodies] == ["tool_calls", "stop", "tool_calls"]
    calls = [message["tool_calls"][0] for message in (messages[0], messages[2])]
    assert [call["function"] for call in calls] == [{"name": "add", "arguments": '{"a": 1}'}] * 2
    assert calls[0]["id"] != calls[1]["id"]
    assert bodies[0]["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
