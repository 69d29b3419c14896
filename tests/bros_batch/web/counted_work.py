"""A web server whose work is counted: the calls in each callback of its loop, and the objects in each piece of JSON."""

from __future__ import annotations

import asyncio.events
import asyncio.runners
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bros_batch.db.schema import upgrade
from bros_batch.web.app import create_app
from engine.runner.simulated import SimulatedRunner
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving_app, web_settings
from tests.engines import running_engine
from tests.factories import runner_info
from tests.factories_text import make_text_model

# From here on, asyncio and uvloop call what a callback is.
LOOPS = (asyncio.events.__file__, asyncio.runners.__file__)


class CallCounter:
    """Counts the calls within each callback of the loop that runs on this thread, those of functions in C, too."""

    def __init__(self) -> None:
        self.most = 0
        self.num_callbacks = 0
        self._num_calls = 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event not in ("call", "c_call"):
            return
        self._num_calls += 1
        if event == "call" and frame.f_back is not None and frame.f_back.f_code.co_filename in LOOPS:
            self.num_callbacks += 1
            self._num_calls = 0
        self.most = max(self.most, self._num_calls)


class JsonCounter:
    """Counts the objects that one call of msgspec's encoder takes, or its decoder makes: no thread runs beside it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.most = 0
        encode, decode = msgspec.json.encode, msgspec.json.decode

        def counted(value: Any) -> Any:
            self.most = max(self.most, num_objects(value))
            return value

        patch.setattr(msgspec.json, "encode", lambda value: encode(counted(value)))
        patch.setattr(msgspec.json, "decode", lambda *text, **options: counted(decode(*text, **options)))


def num_objects(value: object) -> int:
    """Number of objects that JSON has; what is encoded already is one."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return 1 + sum(map(num_objects, inner))


@contextmanager
def counting_web(directory: Path) -> Iterator[tuple[Web, CallCounter]]:
    """Serve, with an engine that takes the largest prompts of which one may ask the log-probabilities.

    `GET /counting/on` and `off` switch the counter.
    """
    model = make_text_model(directory / "model")
    counter = CallCounter()

    async def switch(request: Request) -> Response:
        sys.setprofile(counter if request.path_params["state"] == "on" else None)
        return Response()

    runner = SimulatedRunner(runner_info(num_blocks=2000, block_size=16, max_model_len=30_000))
    with running_engine(directory, runner, served_model_name=MODEL_NAME) as engine:
        settings = web_settings(directory, model, engine_url=engine.url, embeddings=True)
        upgrade(settings.resolved_database_url)
        app = create_app(settings)
        app.router.routes.insert(0, Route("/counting/{state}", switch))
        with serving_app(app, settings) as web:
            yield web, counter
