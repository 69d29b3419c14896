"""Decoding of an output: its text, cut at the first stop string, and its log-probabilities."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bros_batch.text.stop_strings import StopCutter
from bros_batch.text.text_rules import WORDS, TextRules
from bros_batch.text.tokenizer import ModelTokenizer
from bros_batch.text.tool_calls.parser import CallPiece
from engine.wire.request_terms import PROMPT_TAIL_TOKENS, PositionLogprobs, Sampling

StopReason = Literal["stop", "length"]  # the engine's
FinishReason = Literal["stop", "length", "tool_calls"]

# JSON has no infinity. OpenAI reports this value for tokens that are practically impossible.
MIN_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a token, and of the most likely tokens at its position.

    `token` is the token's bytes; `offset` is the index in the output of the character at which its text starts.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of an output that can be shown in addition to all earlier pieces."""

    text: str
    logprobs: list[TokenLogprob]
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list)

    @classmethod
    def joined(cls, pieces: Sequence[Piece]) -> Piece:
        """Return consecutive pieces as one."""
        return cls(
            "".join(piece.text for piece in pieces),
            [logprob for piece in pieces for logprob in piece.logprobs],
            "".join(piece.reasoning for piece in pieces),
            [call for piece in pieces for call in piece.calls],
        )

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.logprobs or self.reasoning or self.calls)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. `arguments` is the JSON that the model wrote, which need not be valid."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class FinishedChoice:
    """A complete output. `logprobs` is None if the request did not ask for them."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    num_reasoning_tokens: int = 0


def _id_of(token_id: int) -> bytes:
    """Return the id of a token in place of its bytes, as vLLM writes it."""
    return f"token_id:{token_id}".encode()


class OutputDecoder:
    """Decodes one output as its tokens arrive.

    The text ends before the first stop string; `stopped` is then true, and later tokens are ignored. Stop strings that
    end within the first `min_tokens` tokens are text. The end token of an output has no text, and neither have special
    tokens, except those that are `shown`; `rules` may say otherwise. `prompt_tail` is the end of the prompt, on which
    the text of the first tokens may depend.
    """

    num_reasoning_tokens = 0

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        sampling: Sampling,
        prompt_tail: Sequence[int] = (),
        shown: frozenset[int] = frozenset(),
        rules: TextRules = WORDS,
    ) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        if rules.shows_special_tokens:
            shown = tokenizer.special_ids
        self._stream = tokenizer.stream(prompt_tail[-PROMPT_TAIL_TOKENS:], shown)
        self._cutter = StopCutter(sampling.stop, keeps_stop=rules.keeps_stop)
        self._min_tokens = sampling.min_tokens
        self._ends = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            self._ends |= tokenizer.eos_token_ids
        if sampling.stop:
            # The text omits special tokens, so the engine treats a stop string that names one as a stop token.
            self._ends |= tokenizer.special_ids_of(sampling.stop)
        self._keeps_logprobs = sampling.logprobs is not None
        self._by_token = self._keeps_logprobs or (bool(sampling.stop) and sampling.min_tokens > 0)
        self._held: tuple[int, PositionLogprobs | None] | None = None
        self._waiting: deque[TokenLogprob] = deque()
        self._num_tokens = 0
        self._read_chars = 0
        self._shown_chars = 0

    @property
    def stopped(self) -> bool:
        return self._cutter.stopped

    def push(self, token_ids: Sequence[int], logprobs: Sequence[PositionLogprobs] | None = None) -> Piece:
        """Append `token_ids` and return what can be shown in addition."""
        if not logprobs and not self._by_token:
            return self._push_ids(list(token_ids))
        of_each: Sequence[PositionLogprobs | None] = logprobs or [None] * len(token_ids)
        pairs = list(zip(token_ids, of_each, strict=True))
        if self._held is not None:
            pairs.insert(0, self._held)
            self._held = None
        if pairs and pairs[-1][0] in self._ends:
            # An end token is text only if the output continues after it.
            self._held = pairs.pop()
        text = self._read(pairs)
        return Piece(text, self._released(text))

    def _push_ids(self, token_ids: list[int]) -> Piece:
        """As `push`, for tokens whose text is wanted and nothing else."""
        if self._held is not None:
            token_ids.insert(0, self._held[0])
            self._held = None
        if token_ids and token_ids[-1] in self._ends:
            self._held = token_ids.pop(), None
        return Piece(self._cutter.push(self._stream.push(token_ids)), [])

    def finish_reason(self, reason: StopReason) -> FinishReason:
        """Return why the output ended, given why the engine ended it."""
        return "stop" if self.stopped else reason

    def finish(self, reason: StopReason) -> Piece:
        """Return what remains to be shown, now that the output is complete."""
        text = ""
        if self._held is not None and (reason != "stop" or self._rules.keeps_stop):
            text = self._read([self._held])
        self._held = None
        text += self._cutter.push(self._stream.finish()) + self._cutter.finish()
        logprobs = self._released(text)
        if not self.stopped:
            logprobs += self._waiting
        return Piece(text, logprobs)

    def _read(self, pairs: Sequence[tuple[int, PositionLogprobs | None]]) -> str:
        if not self._by_token:
            return self._cutter.push(self._stream.push([token_id for token_id, _ in pairs]))
        shown = []
        for token_id, logprob in pairs:
            self._num_tokens += 1
            if logprob is not None and self._keeps_logprobs and not self.stopped:
                self._waiting.append(self._token_logprob(token_id, logprob))
            text = self._stream.push((token_id,))
            self._read_chars += len(text)
            shown.append(self._cutter.push(text, armed=self._num_tokens > self._min_tokens))
        return "".join(shown)

    def _token_logprob(self, token_id: int, position: PositionLogprobs) -> TokenLogprob:
        bytes_of = _id_of if self._rules.names_ids else self._tokenizer.bytes_of
        top = tuple((bytes_of(other), max(logprob, MIN_LOGPROB)) for other, logprob in position.top)
        return TokenLogprob(bytes_of(token_id), max(position.logprob, MIN_LOGPROB), top, self._read_chars)

    def _released(self, shown: str) -> list[TokenLogprob]:
        """Return the log-probabilities of the tokens whose text starts in what has been shown, including `shown`."""
        self._shown_chars += len(shown)
        released = []
        while self._waiting and self._waiting[0].offset < self._shown_chars:
            released.append(self._waiting.popleft())
        return released
