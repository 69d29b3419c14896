"""Client of the HTTP API for the command line, Python and the demo. Other programs can use the `openai` package."""

from __future__ import annotations

import json
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import IOBase
from types import TracebackType
from typing import IO, Any, Self, cast
from urllib.parse import urlsplit

import httpx

from bros_batch.addresses import is_loopback
from bros_batch.client.event_lines import event_data
from bros_batch.client.server_url import where_it_runs
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS

CONNECT_TIMEOUT_S = 10.0
# A healthy service may be silent this long while it stores a large upload, or while a chat waits to be scheduled.
READ_TIMEOUT_S = 300.0
PAGE_SIZE = 100
# How long, and how often, the creation of a batch is repeated; a restart of the service takes less.
RETRY_S = 60.0
RETRY_INTERVAL_S = 1.0

Json = dict[str, Any]


class ServiceUnreachable(Exception):
    """The service did not respond: nothing listens, the host is unknown, the connection broke, or the time ran out."""


class ServiceError(Exception):
    """The service responded with an error. `message` is one sentence, `code` the error code if there is one."""

    def __init__(self, message: str, status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


class Client:
    """Sends requests to one service. Raises only ServiceUnreachable and ServiceError, never exceptions of httpx."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        if api_key and not _may_be_key(api_key):
            raise ServiceError(
                "The API key contains a line break, a space at an end, or a character that is not ASCII",
                401,
            )
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname or "", parts.port  # raises ValueError if the port is none
            is_local = is_loopback(host)
            self._http = httpx.Client(
                base_url=self.url,
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                trust_env=not is_local,  # a proxy cannot reach the loopback of this machine
                # Without TLS there is no certificate to verify, and to read those of the machine takes 0.1 s.
                verify=not (is_local and parts.scheme == "http"),
            )
        except (ValueError, httpx.InvalidURL):
            raise _invalid_url(self.url) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def get(self, path: str, **params: Any) -> Json:
        return self._send("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Json:
        return self._send("POST", path, json=body, headers=dict(headers or {}))

    def delete(self, path: str) -> Json:
        return self._send("DELETE", path)

    def check_batch(self, body: Mapping[str, Any]) -> None:
        """Raise ServiceError if the server would not create this job, so that this is known before the upload."""
        self.post("/v1/batches/check", body)

    def create_batch(self, body: Mapping[str, Any]) -> Json:
        """Create a batch. While the service cannot be reached, the request is repeated for up to RETRY_S.

        All attempts have one Idempotency-Key, so an attempt whose response was lost does not make a second batch.
        """
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        end_s = time.monotonic() + RETRY_S
        while True:
            try:
                return self.post("/v1/batches", body, headers)
            except (ServiceUnreachable, ServiceError) as error:
                may_pass = isinstance(error, ServiceUnreachable) or error.status == 503
                if not may_pass or time.monotonic() > end_s:
                    raise
            time.sleep(RETRY_INTERVAL_S)

    def upload(self, name: str, source: IOBase) -> Json:
        """Upload a batch input file without holding it in memory, and return its file object."""
        file = (name, cast("IO[bytes]", source))
        return self._send("POST", "/v1/files", data={"purpose": "batch"}, files={"file": file})

    def batch(self, batch_id: str) -> Json:
        return self.get(f"/v1/batches/{batch_id}")

    def batches(self, limit: int | None = None, **filters: Any) -> Iterator[Json]:
        """Yield batches, newest first; they are fetched page by page."""
        after = None
        while limit is None or limit > 0:
            page = self.get("/v1/batches", after=after, limit=min(PAGE_SIZE, limit or PAGE_SIZE), **filters)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["last_id"]
            limit = None if limit is None else limit - len(page["data"])

    def find_batch(self, reference: str) -> Json:
        """Return a batch by its id, by a unique prefix of its id (with or without `batch_`), or the newest for `last`.

        Raises LookupError, with a sentence for the user, if no batch matches or several do.
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
            raise LookupError(f"No job id starts with {reference!r}. Run `bros-batch list` to see the jobs.")
        if len(found) > 1:
            raise LookupError(f"The ids of {len(found)} jobs start with {reference!r}. Enter more of the id.")
        return found[0]

    def served_model(self) -> str:
        """Return the name of the model that the service serves."""
        return str(self.get("/v1/models")["data"][0]["id"])

    def result_lines(self, batch_id: str, status: str) -> Iterator[bytes]:
        """Yield the lines of the output file so far, or of the error file, in input order and with their newlines.

        `status` is `succeeded` for the output file and `failed` for the error file. The job may still be running.
        """
        yield from self._lines(f"/v1/batches/{batch_id}/results", params={"status": status})

    def row_lines(self, batch_id: str, **params: str) -> Iterator[bytes]:
        """Yield the rows of a batch in input order, each as a line of JSON, as `GET /v1/batches/{id}/rows` lists them.

        `only="ended"` leaves out unfinished rows, and `only="failed"` those with a result as well.
        """
        headers = {"Accept": "application/x-ndjson"}
        yield from self._lines(f"/v1/batches/{batch_id}/rows", params=params, headers=headers)

    def export_lines(self, batch_id: str) -> Iterator[bytes]:
        """Yield the lines of a batch with everything, as `POST /v1/batches/import` reads them."""
        yield from self._lines(f"/v1/batches/{batch_id}/export")

    def _lines(self, path: str, **arguments: Any) -> Iterator[bytes]:
        with self._stream("GET", path, **arguments) as response:
            rest = b""
            for data in response.iter_bytes():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield line + b"\n"
            if rest:
                yield rest + b"\n"

    def stream_chat(self, body: Mapping[str, Any]) -> Iterator[Json]:
        """Yield the chunks of a streamed chat completion. The last one has `usage`."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        with self._stream("POST", CHAT_COMPLETIONS, json={**body, **options}) as response:
            for data in event_data(response.iter_bytes()):
                if data == "[DONE]":
                    return
                chunk: Json = json.loads(data)
                if "error" in chunk:
                    raise ServiceError(chunk["error"]["message"], 200, chunk["error"].get("code"))
                yield chunk
        raise ServiceUnreachable(f"The response of {self.url} ended early.")

    def _send(self, method: str, path: str, **arguments: Any) -> Json:
        with self._translated():
            response = self._http.request(method, path, **arguments)
            self._check(response)
        try:
            answer: Json = response.json()
        except ValueError:
            raise ServiceError(
                f"{self.url} is not a bros-batch service: the response is not JSON.", 502
            ) from None
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
                f"Cannot reach bros-batch at {self.url} ({_reason(error)}). {where_it_runs(self.url)}"
            ) from None
        except httpx.TimeoutException as error:
            raise ServiceUnreachable(f"bros-batch at {self.url} did not respond in time.") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise _invalid_url(self.url) from error
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
        if response.status_code in (502, 503, 504):  # from a proxy whose service is down
            raise ServiceUnreachable(
                f"bros-batch at {self.url} is unavailable (HTTP {response.status_code})."
            )
        raise ServiceError(
            f"{response.request.method} {response.request.url.path} returned HTTP {response.status_code}.",
            response.status_code,
        )


def _may_be_key(api_key: str) -> bool:
    """Whether a header can contain the key. A library's error for one that cannot would show the key."""
    return api_key.isascii() and api_key.isprintable() and api_key == api_key.strip()


def _invalid_url(url: str) -> ServiceUnreachable:
    return ServiceUnreachable(f"{url!r} is not a valid URL. Use the form http://host:8000.")


def _reason(error: Exception) -> str:
    """Return the innermost cause in words, without `[Errno 111]`."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.strerror:
        return cause.strerror.lower()
    return str(error) or type(error).__name__
