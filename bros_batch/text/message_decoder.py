"""Decoding of an output into reasoning, text and tool calls."""

from __future__ import annotations

from collections.abc import Sequence

from bros_batch.text.output_decoder import FinishReason, OutputDecoder, Piece, StopReason
from bros_batch.text.reasoning import ReasoningPhase, ReasoningSplitter
from bros_batch.text.tool_calls.parser import CallParser, Parsed
from engine.wire.request_terms import PositionLogprobs


class MessageDecoder:
    """An OutputDecoder whose text is split up.

    Whether the tokens come one by one or together makes no difference to what the pieces hold in total.
    """

    def __init__(
        self,
        decoder: OutputDecoder,
        splitter: ReasoningSplitter | None,
        parser: CallParser | None,
        *,
        shows_reasoning: bool = True,
        ends_in_calls: bool = True,
    ) -> None:
        self._decoder = decoder
        self._splitter = splitter
        self._parser = parser
        self._shows_reasoning = shows_reasoning
        self._ends_in_calls = ends_in_calls
        self._num_tokens = 0
        self.num_reasoning_tokens = 0

    @property
    def stopped(self) -> bool:
        return self._decoder.stopped

    def push(self, token_ids: Sequence[int], logprobs: Sequence[PositionLogprobs] | None = None) -> Piece:
        """Append `token_ids` and return what can be shown in addition."""
        splitter = self._splitter
        if splitter is None:
            return self._split(self._decoder.push(token_ids, logprobs))
        pieces = []
        at = 0
        # The tokens of the reasoning are counted, so they are read one by one.
        while at < len(token_ids) and splitter.phase is not ReasoningPhase.ANSWER:
            of_token = None if logprobs is None else logprobs[at : at + 1]
            pieces.append(self._split(self._decoder.push(token_ids[at : at + 1], of_token)))
            at += 1
            self._num_tokens += 1
            if splitter.has_reasoned:
                self.num_reasoning_tokens = self._num_tokens
        if at < len(token_ids):
            rest = None if logprobs is None else logprobs[at:]
            pieces.append(self._split(self._decoder.push(token_ids[at:], rest)))
        return pieces[0] if len(pieces) == 1 else Piece.joined(pieces)

    def finish(self, reason: StopReason) -> Piece:
        """Return what remains to be shown, now that the output is complete."""
        return self._split(self._decoder.finish(reason), final=True)

    def finish_reason(self, reason: StopReason) -> FinishReason:
        """Return why the output ended, as a client is told. A call to the one function that had to be called is not a
        reason, as in OpenAI's API."""
        if self._parser is not None and self._parser.num_calls and self._ends_in_calls and reason == "stop":
            return "tool_calls"
        return self._decoder.finish_reason(reason)

    def _split(self, piece: Piece, final: bool = False) -> Piece:
        reasoning, text = "", piece.text
        if self._splitter is not None:
            reasoning, text = self._splitter.push(text, final)
        parsed = Parsed(text)
        if self._parser is not None:
            parsed = self._parser.push(text, final)
        if not self._shows_reasoning:
            reasoning = ""
        return Piece(parsed.text, piece.logprobs, reasoning, parsed.calls)
