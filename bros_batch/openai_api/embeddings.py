"""`/v1/embeddings`: texts as vectors, made of the model's last hidden states."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from bros_batch.openai_api.completion_response import Json, ResponseHead
from bros_batch.openai_api.endpoint import Endpoint, Outcome, ServedModel
from bros_batch.openai_api.endpoints import EMBEDDINGS, EndpointPath
from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.openai_api.request_fields import Ignored, Prompt, WholeNumber
from bros_batch.openai_api.served_request import CHARS_PER_PROMPT, ServedRequest
from bros_batch.openai_api.validation import validate
from bros_batch.request_error import RequestError
from bros_batch.text.embedding_form import EmbeddingForm
from engine.wire.item_messages import MAX_PARTS
from engine.wire.request_terms import Part, Sampling


class EmbeddingRequest(ServedRequest):
    """Body of `POST /v1/embeddings`."""

    endpoint: ClassVar[EndpointPath] = EMBEDDINGS
    prompt_param: ClassVar[str] = "input"

    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: WholeNumber | None = Field(None, ge=1)
    add_special_tokens: bool | None = None

    user: Ignored = None

    @property
    def inputs(self) -> Sequence[str | list[int]]:
        """The inputs, each either text or token ids."""
        has_several = isinstance(self.input, list) and not isinstance(self.input[0], int)
        return self.input if has_several else [self.input]

    @property
    def num_prompt_chars(self) -> int:
        return CHARS_PER_PROMPT * len(self.inputs) + sum(map(len, self.inputs))


class Embeddings(Endpoint[EmbeddingRequest]):
    """`POST /v1/embeddings`: turn texts into vectors."""

    path: ClassVar[EndpointPath] = EMBEDDINGS
    document_fields: ClassVar = {"input": "-"}

    def parse(self, raw: bytes | str) -> EmbeddingRequest:
        request = validate(EmbeddingRequest, raw)
        if len(request.inputs) > MAX_PARTS:
            raise RequestError(
                f"'input' has {len(request.inputs)} inputs; at most {MAX_PARTS} are allowed.", "input"
            )
        return request

    def with_document(self, request: EmbeddingRequest, prompt: str, system: str | None) -> EmbeddingRequest:
        return request.model_copy(update={"input": prompt if system is None else f"{system}\n\n{prompt}"})

    def engine_requests(self, request: EmbeddingRequest, model: ServedModel) -> EngineRequests:
        form = _form_of(model)
        if model.tokenizer.hidden_size is not None:
            _check_dimensions(request, model.tokenizer.hidden_size)
        with_special = request.add_special_tokens is not False
        sampling = Sampling(max_tokens=0, pooling=form.pooling)
        parts = [
            Part(model.tokenizer.encode_prompt(text, add_special_tokens=with_special), sampling)
            for text in request.inputs
        ]
        for index, part in enumerate(parts):
            if not part.token_ids:
                param = self.param_of_part(request, index) if len(parts) > 1 else "input"
                raise RequestError(f"'{param}' has no tokens.", param)
        return EngineRequests([], parts)

    def response(
        self, head: ResponseHead, request: EmbeddingRequest, model: ServedModel, outcome: Outcome
    ) -> Json:
        form = _form_of(model)
        data = []
        for index, choice in enumerate(outcome.choices):
            if choice.embedding is None:
                raise ValueError("the engine has computed no embedding")
            _check_dimensions(request, len(choice.embedding) // 4)
            vector = _vector(choice.embedding, form, request.dimensions)
            shown = (
                base64.b64encode(vector).decode() if request.encoding_format == "base64" else _floats(vector)
            )
            data.append({"object": "embedding", "index": index, "embedding": shown})
        usage = {"prompt_tokens": outcome.prompt_tokens, "total_tokens": outcome.prompt_tokens}
        return {"object": "list", "data": data, "model": head.model, "usage": usage}


def _form_of(model: ServedModel) -> EmbeddingForm:
    if model.embedding_form is None:
        raise RequestError(
            "This model was not made for embeddings. To make them of its last hidden states all the same, start the "
            "server with --embeddings.",
            "model",
        )
    return model.embedding_form


def _check_dimensions(request: EmbeddingRequest, most: int) -> None:
    if request.dimensions is not None and request.dimensions > most:
        message = f"'dimensions' is {request.dimensions}, but the model's embeddings have {most}."
        raise RequestError(message, "dimensions")


def _vector(state: bytes, form: EmbeddingForm, dimensions: int | None) -> bytes:
    """Return an embedding as little-endian float32. If it is shortened, its length is made what it was to be."""
    import numpy as np

    vector = np.frombuffer(state, dtype="<f4")[:dimensions].astype(np.float64)
    if form.is_normalized:
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return vector.astype("<f4").tobytes()


def _floats(vector: bytes) -> list[float]:
    import numpy as np

    values: list[float] = np.frombuffer(vector, dtype="<f4").tolist()
    return values
