"""Log-probabilities of a prompt's own tokens: `echo` as OpenAI defines it, and `prompt_logprobs` as vLLM does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from bros_batch.openai_api.completion_response import Json, named_token
from bros_batch.text.output_decoder import MIN_LOGPROB
from bros_batch.text.tokenizer import ModelTokenizer
from engine.wire.request_terms import PositionLogprobs, PromptLogprobs


class Prompt:
    """A prompt with the log-probabilities of its tokens from the second on; `source` is what the request has."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        source: str | list[int],
        token_ids: Sequence[int],
        logprobs: PromptLogprobs | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._ids = token_ids
        self._logprobs = logprobs
        stream = tokenizer.stream()
        pieces = [stream.push((token_id,)) for token_id in token_ids]
        self._offsets = list(itertools.accumulate(map(len, pieces), initial=0))
        self.text = source if isinstance(source, str) else "".join(pieces) + stream.finish()

    def echoed(self, choice: Json, num_logprobs: int | None) -> Json:
        """Return a choice of a plain completion with the prompt before its output."""
        logprobs = choice["logprobs"] or {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        if num_logprobs is None:
            return {**choice, "text": self.text + choice["text"]}
        offsets = [len(self.text) + offset for offset in logprobs["text_offset"]]
        own: list[float | None] = [None]
        top: list[dict[str, float] | None] = [None]
        for token_id, position in self._positions():
            own.append(max(position.logprob, MIN_LOGPROB))
            top.append(self._top(token_id, position, num_logprobs))
        whole = {
            "tokens": [*map(self._name, self._ids), *logprobs["tokens"]],
            "token_logprobs": own + logprobs["token_logprobs"],
            "top_logprobs": top + logprobs["top_logprobs"],
            "text_offset": self._offsets[:-1] + offsets,
        }
        return {**choice, "text": self.text + choice["text"], "logprobs": whole}

    def logprobs(self, number: int) -> list[Json | None]:
        """Return vLLM's `prompt_logprobs`: for each token the `number` likeliest and the actual one, by their ids.

        The rank of an actual token that is not among the likeliest is unknown, and null.
        """
        found: list[Json | None] = [None]
        for token_id, position in self._positions():
            entries: Json = {}
            ranks = {other: rank for rank, (other, _) in enumerate(position.top, start=1)}
            entries[str(token_id)] = self._entry(token_id, position.logprob, ranks.get(token_id))
            for other, logprob in position.top[:number]:
                entries.setdefault(str(other), self._entry(other, logprob, ranks[other]))
            found.append(entries)
        return found

    def _positions(self) -> Iterator[tuple[int, PositionLogprobs]]:
        """Yield the tokens that have log-probabilities, all but the first."""
        positions = () if self._logprobs is None else self._logprobs.positions()
        return zip(self._ids[1:], positions, strict=True)

    def _entry(self, token_id: int, logprob: float, rank: int | None) -> Json:
        text = self._tokenizer.bytes_of(token_id).decode(errors="replace")
        return {"logprob": max(logprob, MIN_LOGPROB), "rank": rank, "decoded_token": text}

    def _name(self, token_id: int) -> str:
        return named_token(self._tokenizer.bytes_of(token_id))

    def _top(self, token_id: int, position: PositionLogprobs, number: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for other, logprob in ((token_id, position.logprob), *position.top[:number]):
            found.setdefault(self._name(other), max(logprob, MIN_LOGPROB))
        return found
