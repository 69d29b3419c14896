"""What a sample of the lines of a job would become: their form, the first request, tokens, and which are rejected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bros_batch.documents.content_key import content_keys
from bros_batch.documents.item_requests import JobRequests, job_requests
from bros_batch.documents.lines import LineReader
from bros_batch.documents.row_request import RowRequest, row_request
from bros_batch.openai_api.endpoint import ServedModel
from bros_batch.openai_api.engine_requests import EngineRequests
from bros_batch.request_error import RequestError


@dataclass(slots=True)
class Sample:
    """What is known of the lines that were looked at. The counts of tokens are sums over those that would run."""

    looked_at: int = 0
    accepted: int = 0
    prompt_tokens: int = 0
    own_tokens: int = 0  # those of prompts without the beginning that all of them share
    output_limit: int = 0  # tokens that the outputs may have at most
    form: str | None = None
    first_row: int | None = None
    first: RowRequest | None = None
    rejected: list[tuple[int, str]] = field(default_factory=list)
    # The content keys of each accepted line whose answer may be reused.
    keys: list[list[bytes]] = field(default_factory=list)

    @property
    def computed_tokens(self) -> float:
        """Prompt tokens of a row that must be computed, where the rows share one beginning through the cache."""
        return self.own_tokens / max(self.accepted, 1)


class SampleReader:
    """Reads lines as ingest and prepare do."""

    def __init__(
        self,
        reader: LineReader,
        endpoint: str,
        name: str,
        defaults: Mapping[str, Any],
        model: ServedModel,
        key_scope: bytes | None = None,
    ) -> None:
        self._key_scope = key_scope
        self._reader = reader
        self._endpoint = endpoint
        self._name = name
        self._defaults = defaults
        self._model = model
        self._requests: JobRequests | RequestError | None = None

    def read(self, lines: Sequence[tuple[int, str]], time_is_up: Callable[[], bool]) -> Sample:
        """Look at lines, given with their numbers, until the time is up; at one in any case."""
        sample = Sample()
        shared: list[int] | None = None
        for number, line in lines:
            if sample.looked_at and time_is_up():
                break
            sample.looked_at += 1
            try:
                requests, body = self._requests_of(number, line)
            except RequestError as error:
                sample.rejected.append((number, _of_row(number, error.message)))
                continue
            prompt = [*requests.shared_ids, *(token for part in requests.parts for token in part.token_ids)]
            shared = prompt if shared is None else shared[: _common(shared, prompt)]
            sample.accepted += 1
            sample.prompt_tokens += requests.num_prompt_tokens
            sample.own_tokens += len(prompt)
            sample.output_limit += requests.num_choices * sum(
                part.sampling.max_tokens for part in requests.parts
            )
            if self._key_scope is not None:
                keys = content_keys(requests, self._key_scope)
                sample.keys += [keys] if keys else []
            if sample.first is None:
                sample.first_row = number
                sample.first = row_request(
                    self._endpoint, self._name, self._reader.form, self._defaults, body, number
                )
        sample.own_tokens -= len(shared or ()) * max(sample.accepted - 1, 0)
        sample.form = self._reader.form
        sample.rejected.sort()
        return sample

    def _requests_of(self, number: int, line: str) -> tuple[EngineRequests, str]:
        """What a line becomes for the engine, and its body. Raises RequestError, which says what is wrong with it."""
        item = self._reader.read(line.encode(), number)
        if item.body is None:
            raise RequestError(item.error_message or "The line is not usable.")
        if self._requests is None:
            try:
                self._requests = job_requests(self._endpoint, self._name, self._reader.form, self._defaults)
            except RequestError as error:
                self._requests = error
        if isinstance(self._requests, RequestError):
            raise self._requests
        try:
            return self._requests.engine_requests(self._model, item.body, number), item.body
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise RequestError(f"the line can't be prepared: {error}") from None


def _of_row(number: int, message: str) -> str:
    """The message with the number of the row, as the failed item would have it."""
    return message if message.startswith(("Row ", "Line ")) else f"Row {number}: {message}"


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of equal elements at the beginning of two lists."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(index for index in range(length) if first[index] != second[index])
