"""`/tokenize` and `/detokenize`: what a prompt is for the model, as in vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bros_batch.openai_api.tokenize_request import DetokenizeRequest, parse_tokenize
from bros_batch.openai_api.validation import validate
from bros_batch.request_error import RequestError
from bros_batch.web.app_state import AppState, app_state
from bros_batch.web.errors import JSONResponse
from bros_batch.web.generation import INLINE_CHARS

T = TypeVar("T")


async def tokenize(http: Request) -> Response:
    """Respond with the token ids of a prompt or of the messages of a chat, and their number."""
    state = app_state(http)
    request = await state.parsed(http, parse_tokenize)
    _check_model(state, request.model)
    tokenizer = await state.tokenizer()
    client = state.engine.connected
    max_model_len = tokenizer.max_model_len if client is None else client.welcome.max_model_len

    def body() -> bytes:
        token_ids = request.token_ids(tokenizer)
        answer = {
            "count": len(token_ids),
            "max_model_len": max_model_len,
            "tokens": token_ids,
            "token_strs": tokenizer.names_of(token_ids) if request.return_token_strs else None,
        }
        return msgspec.json.encode(answer)

    return Response(await _run(state, request.num_chars, body), media_type="application/json")


async def detokenize(http: Request) -> Response:
    """Respond with the text of token ids, special tokens included."""
    state = app_state(http)
    request = await state.parsed(http, lambda raw: validate(DetokenizeRequest, raw))
    _check_model(state, request.model)
    tokenizer = await state.tokenizer()
    most = max(request.tokens, default=0)
    if most >= tokenizer.vocab_size:
        message = (
            f"'tokens' has the id {most}, which is outside the vocabulary of {tokenizer.vocab_size} tokens."
        )
        raise RequestError(message, "tokens")
    text = await _run(state, len(request.tokens), lambda: tokenizer.decode_all(request.tokens))
    return JSONResponse({"prompt": text})


def _check_model(state: AppState, name: str | None) -> None:
    if name:
        state.settings.model_names.resolve(name)


async def _run(state: AppState, num_chars: int, work: Callable[[], T]) -> T:
    if num_chars < INLINE_CHARS:
        return work()
    async with state.long_prompts:
        return await asyncio.to_thread(work)


routes = [
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
]
