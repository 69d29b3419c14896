"""The list of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from bros_batch.openai_api.sampling_defaults import SamplingDefaults
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.engines import RunningEngine


def test_models(web: Web) -> None:
    with web.openai() as client:
        models = list(client.models.list())
        assert [model.id for model in models] == [MODEL_NAME]
        assert client.models.retrieve(MODEL_NAME).id == MODEL_NAME
    with web.http() as http:
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 2048


def test_an_alias_is_served_and_listed(tmp_path: Path, text_model: Path, engine: RunningEngine) -> None:
    settings = web_settings(
        tmp_path, text_model, engine_url=engine.url, model_aliases=(f"gpt-4o-mini={MODEL_NAME}",)
    )
    messages: Any = [{"role": "user", "content": "Hello"}]
    with serving(settings) as web, web.openai() as client:
        assert [model.id for model in client.models.list()] == [MODEL_NAME, "gpt-4o-mini"]
        assert client.models.retrieve("gpt-4o-mini").model_dump()["root"] == MODEL_NAME
        chat = client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_tokens=2)
        assert chat.model == MODEL_NAME
        text = client.completions.create(model="gpt-4o-mini", prompt="Hello", max_tokens=2)
        assert text.model == MODEL_NAME
        with pytest.raises(openai.NotFoundError, match="--model-alias 'gpt-4o=tiny'") as caught:
            client.chat.completions.create(model="gpt-4o", messages=messages)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_the_defaults_of_sampling_are_reported(web: Web) -> None:
    with web.http() as http:
        defaults = http.get(f"/v1/models/{MODEL_NAME}").json()["sampling_defaults"]
    assert defaults == SamplingDefaults().as_json()
    assert (defaults["chat_tokens"], defaults["completion_tokens"]) == (None, 16)
