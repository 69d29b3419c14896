"""Parameters without effect: the answer names them in a header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from bros_batch.text.tokenizer import ModelTokenizer
from tests.bros_batch.web.serving import MODEL_NAME, serving, web_settings
from tests.engines import RunningEngine
from tests.factories_text import CHAT_TEMPLATE, make_text_model

HEADER = "x-bros-ignored"
HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("stream", [False, True])
def test_parameters_without_effect_are_named_in_a_header(client: OpenAI, stream: bool) -> None:
    create: Any = client.chat.completions.with_raw_response.create
    asked: dict[str, Any] = {"model": MODEL_NAME, "max_tokens": 2, "stream": stream}
    assert HEADER not in create(messages=HELLO, **asked).headers
    messages = [*HELLO, {"role": "assistant", "content": "Hi.", "refusal": "", "annotations": None}, *HELLO]
    extra = {
        "think": True,
        "max_token": 5,
        "evil\r\nx-header: 1": 1,
        "chat_template_kwargs": {"tone": "warm"},
    }
    answer = create(messages=messages, user="me", reasoning_effort="low", extra_body=extra, **asked)
    named = set(answer.headers[HEADER].split(", "))
    assert named == {
        "user",
        "think",
        "max_token",
        "?",
        "messages[1].refusal",
        "reasoning_effort",
        "chat_template_kwargs.tone",
    }
    assert "x-header" not in answer.headers


def test_a_batch_names_them_too(client: OpenAI) -> None:
    file_id = client.files.create(file=("f.jsonl", b"{}\n"), purpose="batch").id
    answer = client.batches.with_raw_response.create(
        input_file_id=file_id,
        endpoint="/v1/completions",
        completion_window="24h",
        extra_body={"tags": ["a"]},
    )
    assert answer.headers[HEADER] == "tags"


def test_a_strict_server_rejects_unknown_fields_and_no_others(
    tmp_path: Path, text_model: Path, engine: RunningEngine
) -> None:
    settings = web_settings(tmp_path, text_model, engine_url=engine.url, strict=True)
    with serving(settings) as web, web.openai() as client:
        create: Any = client.chat.completions.create
        with pytest.raises(BadRequestError, match="Unknown parameter: 'max_token'") as caught:
            create(model=MODEL_NAME, messages=HELLO, extra_body={"max_token": 5})
        assert caught.value.param == "max_token"
        create(model=MODEL_NAME, messages=HELLO, max_tokens=1, user="me", store=True)


def test_many_ignored_parameters_do_not_make_a_long_header(client: OpenAI) -> None:
    extra = {f"option_{number}": number for number in range(5000)}
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
    assert {"reasoning_effort", "verbosity"} <= tokenizer.renderer.variables
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
