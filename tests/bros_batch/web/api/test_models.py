"""The list of models."""

from __future__ import annotations

from tests.bros_batch.web.serving import MODEL_NAME, Web


def test_models(web: Web) -> None:
    with web.openai() as client:
        models = list(client.models.list())
        assert [model.id for model in models] == [MODEL_NAME]
        assert client.models.retrieve(MODEL_NAME).id == MODEL_NAME
    with web.http() as http:
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 2048
