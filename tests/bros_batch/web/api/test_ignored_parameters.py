"""Parameters without effect: the answer names them in a header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from bros_batch.text.tokenizer import ModelTokenizer
from tests.bros_batch.web.serving import MODEL_NAME, serving, web_settings
from tests.engines import RunningEngine
from tests.factories_text import CHAT_TEMPLATE, make_text_model

HEADER = "x-bros-ignored-parameters"
HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("stream", [False, True])
def test_parameters_without_effect_are_named_in_a_header(client: OpenAI, stream: bool) -> None:
    create: Any = client.chat.completions.with_raw_response.create
    asked: dict[str, Any] = {"model": MODEL_NAME, "max_tokens": 2, "stream": stream}
    assert HEADER not in create(messages=HELLO, **asked).headers
    messages = [*HELLO, {"role": "assistant", "content": "Hi.", "refusal": "", "annotations": None}, *HELLO]
    extra = {"think": False, "evil\r\nx-header: 1": False, "chat_template_kwargs": {"tone": "warm"}}
    answer = create(messages=messages, user="me", reasoning_effort="low", extra_body=extra, **asked)
    named = set(answer.headers[HEADER].split(", "))
    assert named == {
        "user",
        "think",
        "?",
        "messages[1].refusal",
        "reasoning_effort",
        "chat_template_kwargs.tone",
    }
    assert "x-header" not in answer.headers


def test_many_ignored_parameters_do_not_make_a_long_header(client: OpenAI) -> None:
    extra = {f"option_{number}": False for number in range(5000)}
    create = client.chat.completions.with_raw_response.create
    answer = create(model=MODEL_NAME, messages=HELLO, max_tokens=2, extra_body=extra)
    assert len(answer.headers[HEADER]) < 2500
    assert answer.headers[HEADER].endswith(", ...")


def test_a_template_gets_the_effort_and_the_verbosity_that_it_reads(
    tmp_path: Path, engine: RunningEngine
) -> None:
    directory = make_text_model(tmp_path / "model")
    template = "{{ reasoning_effort or 'medium' }}/{{ verbosity | default('?') }}" + CHAT_TEMPLATE
    (directory / "chat_template.jinja").write_text(template)
    tokenizer = ModelTokenizer(directory)
    assert {"reasoning_effort", "verbosity"} <= tokenizer.template_variables
    with (
        serving(web_settings(tmp_path, directory, engine_url=engine.url)) as web,
        web.openai() as client,
    ):
        lengths = []
        for effort in ("low", "x" * 60):
            answer = client.chat.completions.with_raw_response.create(
                model=MODEL_NAME,
                messages=HELLO,
                max_tokens=2,
                verbosity="high",
                extra_body={"reasoning_effort": effort},
            )
            assert HEADER not in answer.headers
            usage = answer.parse().usage
            assert usage is not None
            kwargs = {"reasoning_effort": effort, "verbosity": "high"}
            assert usage.prompt_tokens == len(tokenizer.encode_chat(HELLO, kwargs))
            lengths.append(usage.prompt_tokens)
        assert lengths[0] < lengths[1]
