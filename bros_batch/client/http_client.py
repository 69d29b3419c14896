"""A client of the HTTP API, as the command line and the demo use it. Programs of your own: use the `openai` package."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import IOBase
from types import TracebackType
from typing import IO, Any, Self, cast
from urllib.parse import urlsplit

import httpx

from bros_batch.addresses import is_loopback
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS

CONNECT_TIMEOUT_S = 10.0
# The longest silence of a service that is alive: it hashes a large upload, or a chat waits for its turn.
READ_TIMEOUT_S = 300.0
PAGE = 100

Json = dict[str, Any]


class ServiceUnreachable(Exception):
    """No answer came: nothing listens, the name is unknown, the connection broke, or time ran out."""


class ServiceError(Exception):
    """The service answered with an error. `message` is its sentence; `code` its word for it, where it has one."""

    def __init__(self, message: str, status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


class Client:
    """Requests to one service. Raises ServiceUnreachable and ServiceError, and nothing of httpx."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        host = urlsplit(self.url).hostname or ""
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=not is_loopback(host),  # a proxy does not know this machine's loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Json:
        return self._send("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        return self._send("POST", path, json=body)

    def upload(self, name: str, source: IOBase) -> Json:
        """Send a batch input file as it is read; memory does not grow with it. Returns the file object."""
        file = (name, cast("IO[bytes]", source))
        return self._send("POST", "/v1/files", data={"purpose": "batch"}, files={"file": file})

    def batch(self, batch_id: str) -> Json:
        return self.get(f"/v1/batches/{batch_id}")

    def batches(self, limit: int | None = None, **filters: Any) -> Iterator[Json]:
        """Batches, newest first, page by page."""
        after = None
        while limit is None or limit > 0:
            page = self.get("/v1/batches", after=after, limit=min(PAGE, limit or PAGE), **filters)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["last_id"]
            limit = None if limit is None else limit - len(page["data"])

    def find_batch(self, reference: str) -> Json:
        """A batch by its id, by a prefix of the id that no other has (with or without `batch_`), or `last`.

        Raises LookupError with a sentence where there is none, or more than one.
        """
        if reference == "last":
            newest = next(self.batches(1), None)
            if newest is None:
                raise LookupError("There are no jobs yet.")
            return newest
        prefix = reference if reference.startswith("batch_") else f"batch_{reference}"
        if len(prefix) == len("batch_") + 24:
            return self.batch(prefix)
        found = [batch for batch in self.batches() if batch["id"].startswith(prefix)]
        if not found:
            raise LookupError(f"No job's id starts with {reference!r}; `bros-batch list` shows them.")
        if len(found) > 1:
            raise LookupError(f"{len(found)} jobs' ids start with {reference!r}; give more of it.")
        return found[0]

    def served_model(self) -> str:
        """The name of the model that the service has."""
        return str(self.get("/v1/models")["data"][0]["id"])

    def result_lines(self, batch_id: str, status: str) -> Iterator[bytes]:
        """Lines of JSON, in input order, each with its newline: finished lines so far, also of a running job.
        `status` is `succeeded` or `failed`."""
        with self._stream("GET", f"/v1/batches/{batch_id}/results", params={"status": status}) as response:
            rest = b""
            for chunk in response.iter_bytes():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line + b"\n"
            if rest:
                yield rest + b"\n"

    def stream_chat(self, body: Mapping[str, Any]) -> Iterator[Json]:
        """Chunks of a streamed chat completion, the last with `usage`."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        with self._stream("POST", CHAT_COMPLETIONS, json={**body, **options}) as response:
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                chunk: Json = json.loads(data)
                if "error" in chunk:
                    raise ServiceError(chunk["error"]["message"], 200, chunk["error"].get("code"))
                yield chunk
        raise ServiceUnreachable(f"The answer from {self.url} broke off.")

    def _send(self, method: str, path: str, **arguments: Any) -> Json:
        with self._translated():
            response = self._http.request(method, path, **arguments)
            self._check(response)
        try:
            answer: Json = response.json()
        except ValueError:
            raise ServiceError(f"{self.url} is no bros-batch service: it answers no JSON.", 502) from None
        return answer

    @contextmanager
    def _stream(self, method: str, path: str, **arguments: Any) -> Iterator[httpx.Response]:
        with self._translated(), self._http.stream(method, path, **arguments) as response:
            if response.is_error:
                response.read()
            self._check(response)
            yield response

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise ServiceUnreachable(
                f"Cannot reach bros-batch at {self.url} ({_reason(error)}); is `bros-batch up` running there? "
                "BROS_URL or --url says where to look."
            ) from error
        except httpx.TimeoutException as error:
            raise ServiceUnreachable(f"bros-batch at {self.url} does not answer in time.") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise ServiceUnreachable(
                f"{self.url!r} is no URL; it should be like http://host:8000."
            ) from error
        except httpx.TransportError as error:
            raise ServiceUnreachable(f"The connection to {self.url} broke: {_reason(error)}.") from error

    def _check(self, response: httpx.Response) -> None:
        if not response.is_error:
            return
        try:
            error = response.json()["error"]
            raise ServiceError(error["message"], response.status_code, error.get("code"))
        except (ValueError, KeyError, TypeError):
            pass
        if response.status_code in (502, 503, 504):  # a proxy's words: the service behind it is away
            raise ServiceUnreachable(f"bros-batch at {self.url} is away (HTTP {response.status_code}).")
        raise ServiceError(
            f"{response.request.method} {response.request.url.path} answered HTTP {response.status_code}.",
            response.status_code,
        )


def _reason(error: Exception) -> str:
    """The innermost cause in words, without `[Errno 111]`."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.strerror:
        return cause.strerror.lower()
    return str(error) or type(error).__name__
