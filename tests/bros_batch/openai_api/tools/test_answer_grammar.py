"""Grammars of answers with tool calls, checked with llguidance on the tokenizers of several forms of calls."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jsonschema
import llguidance
import llguidance.numpy
import pytest
from tokenizers import Tokenizer

from bros_batch.openai_api.grammars import requested_grammar
from bros_batch.openai_api.message_form import message_form
from bros_batch.openai_api.tools.answer_grammar import answer_grammar
from bros_batch.request_error import RequestError
from bros_batch.text.message_form import finished_choice
from bros_batch.text.output_decoder import FinishedChoice
from bros_batch.text.reasoning import ReasoningPhase
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.item_messages import Choice
from engine.wire.request_terms import Grammar, Sampling
from tests.bros_batch.openai_api.factories import chat
from tests.factories_tools import ToolStyle, make_tool_model

END = 2
ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", 'y"z']}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
SHAPE = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
STYLES = [(style, has_tokens) for style in get_args(ToolStyle) for has_tokens in (True, False)]


def function(name: str, parameters: dict[str, Any] | None, strict: bool | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}


TOOLS = [function("add", ADD), function('say "hi"', None)]
STRICT = [function("add", ADD, strict=True), function("wait", None, strict=True)]


class Model:
    """A tokenizer, and matchers of grammars over its vocabulary."""

    def __init__(self, directory: Path, style: ToolStyle, has_tokens: bool, **options: Any) -> None:
        path = make_tool_model(directory, style, has_tokens=has_tokens, **options)
        self.tokenizer = ModelTokenizer(path)
        source = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.matchers = llguidance.LLTokenizer(source.to_str(), eos_token=END)

    def grammar(self, phase: ReasoningPhase = ReasoningPhase.ANSWER, **fields: Any) -> Grammar | None:
        request = chat(**fields)
        shape = requested_grammar(request)
        return answer_grammar(
            self.tokenizer,
            shape and shape[0],
            request.tools or [],
            request.choice,
            phase,
            is_single=request.parallel_tool_calls is False,
        )

    def accepts(self, grammar: Grammar, text: str) -> bool:
        matcher = llguidance.LLMatcher(self.matchers, grammar.text, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.tokenizer.encode_prompt(text, add_special_tokens=False)
        return matcher.validate_tokens([*ids, END]) == len(ids) + 1

    def drawn(self, grammar: Grammar, seed: int, max_tokens: int = 300) -> Choice:
        """Returns an output that is drawn at random from what the grammar allows."""
        draw = random.Random(seed)
        matcher = llguidance.LLMatcher(self.matchers, grammar.text, log_level=0)
        bits = llguidance.numpy.allocate_token_bitmask(1, self.matchers.vocab_size)
        ids: list[int] = []
        while len(ids) < max_tokens:
            llguidance.numpy.fill_next_token_bitmask(matcher, bits)
            allowed = [
                each for each in range(self.matchers.vocab_size) if bits[0][each // 32] >> (each % 32) & 1
            ]
            if END in allowed and draw.random() < 0.3:
                return Choice([*ids, END], "stop")
            ids.append(draw.choice(allowed))
            assert matcher.consume_token(ids[-1])
            if ids[-1] == END or matcher.is_stopped():
                return Choice(ids, "stop")
        return Choice(ids, "length")

    def answer(self, choice: Choice, prompt: str = "", **fields: Any) -> FinishedChoice:
        form = message_form(chat(**fields), self.tokenizer)
        tail = self.tokenizer.encode_prompt(prompt, add_special_tokens=False)
        return finished_choice(self.tokenizer, 0, choice, Sampling(max_tokens=1), tail, form)

    def written(self, calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
        """Returns calls in the model's form."""
        form = self.tokenizer.call_format
        if form.has_named_form and self.tokenizer.added_token_id("[ARGS]") is not None:
            return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}" for name, arguments in calls)
        objects = [json.dumps({"name": name, form.arguments_key: arguments}) for name, arguments in calls]
        match form.name:
            case "hermes":
                return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in objects)
            case "llama3_json":
                return "; ".join(objects)
            case "mistral":
                return f"[TOOL_CALLS][{', '.join(objects)}]"
            case "json":
                return objects[0] if len(objects) == 1 else f"[{', '.join(objects)}]"


GOOD = [("add", {"a": -3, "b": 'y"z'})]
BAD = [("add", {"a": "three", "b": "x"})]


@pytest.fixture(
    scope="module", params=STYLES, ids=lambda param: f"{param[0]}-{'tokens' if param[1] else 'text'}"
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    style, has_tokens = request.param
    return Model(tmp_path_factory.mktemp("model"), style, has_tokens)


def check_calls(answer: FinishedChoice, schemas: dict[str, dict[str, Any]]) -> None:
    for call in answer.calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])


def test_required_calls_are_valid(model: Model) -> None:
    grammar = model.grammar(tools=TOOLS, tool_choice="required")
    assert grammar is not None
    assert model.accepts(grammar, model.written(GOOD))
    assert model.accepts(grammar, model.written([*GOOD, ('say "hi"', {})]))
    for wrong in (
        "",
        "Hello",
        model.written(BAD),
        model.written([("subtract", {})]),
        "x" + model.written(GOOD),
    ):
        assert not model.accepts(grammar, wrong)
    ended = 0
    for seed in range(12):
        choice = model.drawn(grammar, seed)
        answer = model.answer(choice, tools=TOOLS)
        if choice.reason == "stop":
            ended += 1
            assert answer.calls and not answer.text
            assert answer.finish_reason == "tool_calls"
            check_calls(answer, {"add": ADD, 'say "hi"': NOTHING})
    assert ended


def test_a_named_function_is_called_once(model: Model) -> None:
    named = {"type": "function", "function": {"name": "add"}}
    fields: dict[str, Any] = {"tools": TOOLS, "tool_choice": named}
    grammar = model.grammar(**fields, parallel_tool_calls=False)
    assert grammar is not None
    assert model.accepts(grammar, model.written(GOOD))
    assert not model.accepts(grammar, model.written([('say "hi"', {})]))
    assert not model.accepts(grammar, model.written(GOOD * 2))
    answer = model.answer(model.drawn(grammar, 1), **fields)
    assert [call.name for call in answer.calls] == ["add"]
    assert answer.finish_reason != "tool_calls"


def test_strict_functions_are_valid_wherever_they_are_called(model: Model) -> None:
    grammar = model.grammar(tools=STRICT)
    assert grammar is not None
    texts: list[tuple[str, bool]] = [
        ("Hello, you.", True),
        ("", True),
        (model.written(GOOD), True),
        (model.written(BAD), False),
        (model.written([("other", {})]), False),
    ]
    if not model.tokenizer.call_format.is_bare:
        texts += [("So:\n" + model.written(GOOD), True), ("So:\n" + model.written(BAD), False)]
    for text, is_allowed in texts:
        assert model.accepts(grammar, text) == is_allowed, text
    for seed in range(12):
        choice = model.drawn(grammar, seed, max_tokens=150)
        answer = model.answer(choice, tools=STRICT)
        if choice.reason == "stop":
            check_calls(answer, {"add": ADD, "wait": NOTHING})


def test_functions_that_are_not_strict_need_no_grammar(model: Model) -> None:
    assert model.grammar(tools=TOOLS) is None
    assert model.grammar(tools=STRICT, tool_choice="none") is None
    mixed = model.grammar(tools=[STRICT[0], function("free", ADD)])
    assert mixed is not None
    assert model.accepts(mixed, model.written([("free", {"any": "thing"})]))
    assert not model.accepts(mixed, model.written(BAD))


def test_allowed_tools_are_the_only_ones(model: Model) -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "name": "add"}]}
    grammar = model.grammar(tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert grammar is not None
    assert model.accepts(grammar, model.written([("add", {"any": 1})]))
    assert not model.accepts(grammar, model.written([('say "hi"', {})]))


def test_the_text_of_an_answer_has_its_shape_unless_tools_are_called(model: Model) -> None:
    schema = {"name": "n", "schema": SHAPE}
    fields: dict[str, Any] = {
        "response_format": {"type": "json_schema", "json_schema": schema},
        "tools": TOOLS,
    }
    grammar = model.grammar(**fields)
    assert grammar is not None
    assert model.accepts(grammar, '{"n": 4}')
    assert model.accepts(grammar, model.written(GOOD))
    assert not model.accepts(grammar, "Hello")
    assert not model.accepts(grammar, '{"m": 4}')
    calls_only = model.grammar(**fields, tool_choice="required")
    assert calls_only is not None
    assert not model.accepts(calls_only, '{"n": 4}')


CALL = '<tool_call>\n{"name": "say \\"hi\\"", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("has_tokens", [True, False])
@pytest.mark.parametrize(
    ("shape", "good", "bad"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SHAPE}}}, '{"n": 4}', "4"),
        ({"structured_outputs": {"regex": "a/b|\\d+\\n"}}, "a/b", "ab"),
        ({"structured_outputs": {"grammar": 'start: "{" x "}"\nx: /[0-9]+/ | "}"'}}, "{}}", "{"),
        ({"guided_choice": ["yes", "n/o"]}, "n/o", "maybe"),
        ({"tools": TOOLS, "tool_choice": "required"}, CALL, ""),
    ],
)  # fmt: skip
def test_grammars_begin_after_the_reasoning(
    tmp_path: Path, has_tokens: bool, shape: dict[str, Any], good: str, bad: str
) -> None:
    model = Model(tmp_path, "hermes", has_tokens, reasoning="prompt_opens")
    thinking = model.grammar(ReasoningPhase.REASONING, **shape)
    undecided = model.grammar(ReasoningPhase.UNDECIDED, **shape)
    closed = model.grammar(ReasoningPhase.ANSWER, **shape)
    assert thinking is not None and undecided is not None and closed is not None
    for gap in ("", "\n", "\n\n"):
        assert model.accepts(thinking, f"Hm, {{.\n</think>{gap}{good}")
        assert model.accepts(undecided, f"<think>Hm.</think>{gap}{good}")
    assert not model.accepts(thinking, f"Hm.</think>\n{bad}")
    assert not model.accepts(thinking, "Hm.")
    assert not model.accepts(undecided, f"<think>Hm.</think>\n\n{bad}")
    assert model.accepts(undecided, good)
    assert not model.accepts(undecided, bad)
    if closed.kind == "lark":
        assert model.accepts(closed, good)


def test_a_schema_that_no_grammar_can_enforce_is_an_error(tmp_path: Path) -> None:
    model = Model(tmp_path, "hermes", True)
    tools = [function("f", {"type": "object", "properties": {"a": {"$ref": "http://example.org"}}})]
    with pytest.raises(RequestError, match=r"tools\[0\].function.parameters"):
        model.grammar(tools=tools, tool_choice="required")
