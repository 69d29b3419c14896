"""What an output consists of besides its text: which marks enclose its reasoning, and how it calls tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bros_batch.text.message_decoder import MessageDecoder
from bros_batch.text.output_decoder import FinishedChoice, OutputDecoder, Piece, ToolCall
from bros_batch.text.reasoning import ReasoningMarks, ReasoningPhase, ReasoningSplitter, first_phase
from bros_batch.text.text_rules import WORDS, TextRules
from bros_batch.text.tokenizer import ModelTokenizer
from bros_batch.text.tool_calls.formats import CallFormat
from bros_batch.text.tool_calls.parser import CallParser, CallPiece
from engine.wire.item_messages import Choice
from engine.wire.request_terms import PROMPT_TAIL_TOKENS, Sampling


@dataclass(frozen=True, slots=True)
class MessageForm:
    """The form of the outputs of one request. Without marks and calls, an output is only text.

    `tool_names` are the tools that the request offers. `max_calls` limits the calls of an output. Without
    `shows_reasoning`, the reasoning is counted and dropped. With `ends_in_calls`, calls are a finish reason.
    """

    reasoning: ReasoningMarks | None = None
    shows_reasoning: bool = True
    calls: CallFormat | None = None
    tool_names: frozenset[str] = frozenset()
    max_calls: int | None = None
    ends_in_calls: bool = True
    rules: TextRules = WORDS

    def decoder(
        self, tokenizer: ModelTokenizer, sampling: Sampling, prompt_tail: Sequence[int] = ()
    ) -> OutputDecoder | MessageDecoder:
        """Return the decoder of one output after a prompt that ends in `prompt_tail`."""
        if self.reasoning is None and self.calls is None:
            return OutputDecoder(tokenizer, sampling, prompt_tail, rules=self.rules)
        markers = () if self.calls is None else self.calls.markers
        splitter = parser = None
        if self.reasoning is not None:
            markers += (self.reasoning.opening, self.reasoning.closing)
            splitter = ReasoningSplitter(self.reasoning, self.first_phase(tokenizer, prompt_tail))
        if self.calls is not None:
            parser = CallParser(self.calls, self.tool_names, self.max_calls)
        return MessageDecoder(
            OutputDecoder(tokenizer, sampling, prompt_tail, tokenizer.special_ids_of(markers), self.rules),
            splitter,
            parser,
            shows_reasoning=self.shows_reasoning,
            ends_in_calls=self.ends_in_calls,
        )

    def first_phase(self, tokenizer: ModelTokenizer, prompt_tail: Sequence[int]) -> ReasoningPhase:
        """Return where an output begins after a prompt that ends in `prompt_tail`."""
        if self.reasoning is None:
            return ReasoningPhase.ANSWER
        return first_phase(self.reasoning, tokenizer.decode_all(prompt_tail[-PROMPT_TAIL_TOKENS:]))


PLAIN = MessageForm()


def finished_choice(
    tokenizer: ModelTokenizer,
    index: int,
    choice: Choice,
    sampling: Sampling,
    prompt_tail: Sequence[int] = (),
    form: MessageForm = PLAIN,
) -> FinishedChoice:
    """Decode a complete output of the engine."""
    decoder = form.decoder(tokenizer, sampling, prompt_tail)
    first, last = decoder.push(choice.token_ids, choice.logprobs), decoder.finish(choice.reason)
    whole = first if last.is_empty else Piece.joined([first, last])
    return FinishedChoice(
        index,
        whole.text,
        decoder.finish_reason(choice.reason),
        None if sampling.logprobs is None else whole.logprobs,
        whole.reasoning,
        _calls(whole.calls) if whole.calls else (),
        decoder.num_reasoning_tokens,
    )


def _calls(pieces: Sequence[CallPiece]) -> tuple[ToolCall, ...]:
    names: list[str] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        if piece.name is not None:
            names.append(piece.name)
            arguments.append([])
        arguments[piece.index].append(piece.arguments)
    return tuple(ToolCall(name, "".join(parts)) for name, parts in zip(names, arguments, strict=True))
