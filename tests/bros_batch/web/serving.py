"""The web server in tests: on a thread of this process, or as a process like the one that users start."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from openai import DefaultHttpxClient, OpenAI

from bros_batch.db.schema import upgrade
from bros_batch.settings import Settings
from bros_batch.text.tokenizer import ModelTokenizer, load_tokenizer
from bros_batch.up.preflight import choose_port
from bros_batch.up.service_commands import environment, web_command
from bros_batch.web.app import create_app
from bros_batch.web.serve import make_server
from tests.services import Processes, processes, wait_for

MODEL_NAME = "tiny"


class _HttpClient(DefaultHttpxClient):
    """Closes itself, as the one does that an OpenAI client makes for itself."""

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True)
class Web:
    """A running server at `url`."""

    url: str
    settings: Settings

    # The server has no TLS, and to read the certificates of the machine takes longer than most tests.

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, verify=False, **options)

    def openai(self, api_key: str = "none", **options: Any) -> OpenAI:
        options.setdefault("http_client", _HttpClient(verify=False))
        return OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=30, **options)

    @property
    def tokenizer(self) -> ModelTokenizer:
        return load_tokenizer(self.settings.model)


def web_settings(directory: Path, model: Path, **options: Any) -> Settings:
    values = {
        "data_dir": directory,
        "model": str(model),
        "served_model_name": MODEL_NAME,
        "port": 0,
        **options,
    }
    return Settings(**values)


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[Web]:
    """Serve the application on a thread."""
    upgrade(settings.resolved_database_url)
    with serving_app(create_app(settings), settings) as web:
        yield web


@contextlib.contextmanager
def serving_app(app: FastAPI, settings: Settings) -> Iterator[Web]:
    server = make_server(app, settings, settings.max_connections)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started, "the server")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Web(f"http://127.0.0.1:{port}", settings)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def whole_service(redis_url: str, model: Path, **env: str) -> Iterator[tuple[Web, Processes]]:
    """Start web with its dashboard, worker, beat and a simulated engine, each in a process, in a new directory."""
    with processes() as group:
        port = choose_port("127.0.0.1", 0)
        settings = web_settings(
            group.directory / "data",
            model,
            redis_url=redis_url,
            engine_url=f"unix://{group.directory / 'engine-0.sock'}",
            port=port,
            pump_interval_s=0.2,
        )
        group.env = {**environment(settings), **env}
        upgrade(settings.resolved_database_url)
        group.engine(model, MODEL_NAME, redis_url)
        group.worker()
        group.beat()
        server = group.start([*web_command()])
        web = Web(f"http://127.0.0.1:{port}", settings)

        key = env.get("BROS_API_KEY")

        def is_ready() -> bool:
            assert server.running, server.output()
            try:
                answer = httpx.get(
                    f"{web.url}/ready",
                    headers={"Authorization": f"Bearer {key}"} if key else {},
                    verify=False,
                )
            except httpx.TransportError:
                return False
            last_answer.append(answer.text)
            return answer.status_code == 200

        last_answer = ["none"]
        try:
            wait_for(is_ready, "the service")
            yield web, group
        except BaseException as error:
            error.add_note(f"/ready said {last_answer[-1]}")
            for process in group.started:
                error.add_note(f"{process.log.name} ended with:\n{process.output()[-1500:]}")
            raise
