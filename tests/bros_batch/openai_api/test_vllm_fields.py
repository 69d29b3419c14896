"""Fields of vLLM's API that change the prompt or the text of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bros_batch.openai_api.message_form import text_rules
from bros_batch.openai_api.prompts import encode_prompts
from bros_batch.openai_api.text_endpoints import ChatCompletions, Completions
from bros_batch.request_error import RequestError
from bros_batch.text.message_form import MessageForm, finished_choice
from bros_batch.text.output_decoder import FinishedChoice, Piece, StopReason
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.item_messages import Choice
from engine.wire.request_terms import PositionLogprobs, Sampling
from tests.bros_batch.openai_api.factories import chat, completion, served_model
from tests.factories_text import CHAT_TEMPLATE, make_text_model

END = 2  # <|im_end|>, which ends answers
START = 1  # <|im_start|>
QUESTION = {"role": "user", "content": "How are you?"}


def answered(
    tokenizer: ModelTokenizer, ids: Sequence[int], reason: StopReason, sampling: dict[str, Any], **fields: Any
) -> FinishedChoice:
    """Decode an output by the rules of a request, at once and token by token, which must not differ."""
    form = MessageForm(rules=text_rules(completion(**fields)))
    asked = Sampling(max_tokens=100, **sampling)
    logprobs = [PositionLogprobs(-1.0, ((5, -2.0),)) for _ in ids] if asked.logprobs is not None else None
    whole = finished_choice(tokenizer, 0, Choice(list(ids), reason, logprobs), asked, (), form)
    decoder = form.decoder(tokenizer, asked)
    pieces = []
    for number, token_id in enumerate(ids):
        pieces.append(decoder.push([token_id], None if logprobs is None else [logprobs[number]]))
    pieces.append(decoder.finish(reason))
    assert Piece.joined(pieces).text == whole.text
    return whole


def test_special_tokens_are_text_where_a_request_wants_them(tokenizer: ModelTokenizer) -> None:
    ids = [*tokenizer.encode_prompt("hello"), START, *tokenizer.encode_prompt(" dog"), END]
    assert answered(tokenizer, ids, "stop", {}).text == "hello dog"
    assert answered(tokenizer, ids, "stop", {}, skip_special_tokens=True).text == "hello dog"
    shown = answered(tokenizer, ids, "stop", {}, skip_special_tokens=False)
    assert shown.text == "hello<|im_start|> dog"  # not the token that ended the output
    assert answered(tokenizer, ids, "length", {}, skip_special_tokens=False).text.endswith(" dog<|im_end|>")


def test_what_ended_the_output_is_text_where_a_request_wants_it(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode_prompt("one two three two")
    kept = {"include_stop_str_in_output": True}
    for stop, before, after in (
        ((" two",), "one", "one two"),
        ((" two", " tw"), "one", "one tw"),  # which is complete first
        (("wo th", "absent"), "one t", "one two th"),
    ):
        assert answered(tokenizer, ids, "length", {"stop": stop}).text == before
        found = answered(tokenizer, ids, "length", {"stop": stop}, **kept)
        assert (found.text, found.finish_reason) == (after, "stop")
    last = {"stop_token_ids": (ids[-1],)}
    assert answered(tokenizer, ids, "stop", last, **kept).text == "one two three two"
    assert answered(tokenizer, ids, "stop", last).text == tokenizer.decode(ids[:-1])
    # A special token is shown only if both are wanted.
    assert answered(tokenizer, [*ids, END], "stop", {}, **kept).text == "one two three two"
    both = answered(tokenizer, [*ids, END], "stop", {}, **kept, skip_special_tokens=False)
    assert both.text == "one two three two<|im_end|>"


def test_logprobs_name_token_ids_where_a_request_wants_them(tokenizer: ModelTokenizer) -> None:
    ids = tokenizer.encode_prompt("one two")
    found = answered(tokenizer, ids, "length", {"logprobs": 1}, return_tokens_as_token_ids=True)
    assert found.logprobs is not None
    assert [each.token for each in found.logprobs] == [f"token_id:{token_id}".encode() for token_id in ids]
    assert found.logprobs[0].top[0][0] == b"token_id:5"


def prompt_of(tokenizer: ModelTokenizer, **fields: Any) -> str:
    (ids,) = encode_prompts(tokenizer, chat(**fields))
    return tokenizer.decode_all(ids)


def test_a_prompt_without_the_beginning_of_an_answer(tokenizer: ModelTokenizer) -> None:
    asked = {"messages": [QUESTION]}
    assert prompt_of(tokenizer, **asked).endswith("<|im_start|>assistant\n")
    assert prompt_of(tokenizer, **asked, add_generation_prompt=True) == prompt_of(tokenizer, **asked)
    assert prompt_of(tokenizer, **asked, add_generation_prompt=False).endswith("How are you?<|im_end|>\n")


@pytest.mark.parametrize("content", ["I am", "I am ", " I am", "How are you?"])
def test_the_last_message_is_continued(tokenizer: ModelTokenizer, content: str) -> None:
    messages = [QUESTION, {"role": "assistant", "content": content}]
    for more in ({}, {"add_generation_prompt": False}):
        found = prompt_of(tokenizer, messages=messages, continue_final_message=True, **more)
        assert found.endswith(f"<|im_start|>assistant\n{content}")
        assert found.count("<|im_end|>") == 1


def test_a_message_that_cannot_be_continued_is_an_error(tokenizer: ModelTokenizer) -> None:
    with pytest.raises(RequestError, match="send one of them"):
        chat(continue_final_message=True, add_generation_prompt=True)
    empty = [QUESTION, {"role": "assistant", "content": " "}]
    with pytest.raises(RequestError, match="needs a last message with text"):
        prompt_of(tokenizer, messages=empty, continue_final_message=True)


def test_documents_reach_a_template_that_uses_them(tmp_path: Any, tokenizer: ModelTokenizer) -> None:
    documents = [{"title": "A", "text": "First."}, {"title": "B", "text": "Second."}]
    with pytest.raises(RequestError, match="does not use documents") as caught:
        prompt_of(tokenizer, documents=documents)
    assert caught.value.param == "documents"
    prompt_of(tokenizer, documents=[])
    directory = make_text_model(tmp_path / "model")
    template = "{% for each in documents or [] %}{{ each.text }}{% endfor %}" + CHAT_TEMPLATE
    (directory / "chat_template.jinja").write_text(template)
    assert prompt_of(ModelTokenizer(directory), documents=documents).startswith("First.Second.")


def test_a_prompt_is_truncated_to_its_end(tokenizer: ModelTokenizer) -> None:
    model = served_model(tokenizer, 64)
    ids = list(range(5, 105))
    for fields, kept in (
        ({"truncate_prompt_tokens": 7}, ids[-7:]),
        ({"truncate_prompt_tokens": -1, "max_tokens": 4}, ids[-60:]),
        ({"truncate_prompt_tokens": -1}, ids[-63:]),
    ):
        requests = Completions().engine_requests(completion(prompt=ids, **fields), model)
        assert requests.prompt_of(requests.parts[0]) == kept
    with pytest.raises(RequestError, match="maximum context length"):
        Completions().engine_requests(completion(prompt=ids), model)
    long = chat(messages=[{"role": "user", "content": "word " * 90}], truncate_prompt_tokens=20)
    assert ChatCompletions().engine_requests(long, model).num_prompt_tokens == 20
    for wrong in (0, -2, "x"):
        with pytest.raises(RequestError, match="truncate_prompt_tokens"):
            completion(truncate_prompt_tokens=wrong)


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"bad_words": ["x"]}, "'logit_bias' of -100"),
        ({"allowed_token_ids": [5]}, "structured_outputs"),
        ({"chat_template": "{{ 1 }}"}, "the template is the model's"),
    ],
)
def test_a_field_that_is_refused_says_what_to_do(fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(RequestError, match=hint) as caught:
        chat(**fields)
    assert caught.value.param == next(iter(fields))
