"""What the engine has to send to one client: messages that wait for the end of a step, and tokens of bulk."""

from __future__ import annotations

import asyncio
from time import monotonic

import msgspec

from engine.wire.framing import frame
from engine.wire.protocol import Tokens

# A client that falls this far behind, which is thousands of token frames, is disconnected.
MAX_UNSENT_BYTES = 4 * 1024 * 1024
# The answers about prompts, log-probabilities and vectors, are megabytes each, and a client that reads well gets
# many of them at once. So many bytes of them may be unsent in addition.
MAX_UNSENT_ANSWER_BYTES = 64 * 1024 * 1024
# BE tokens are sent together at this interval. No client waits for each of them, and reading them one by one takes as
# much processor time as serving some of the chats that run at the same time.
BE_SEND_INTERVAL_S = 0.2


class Outbox:
    """The messages to one client. It is in `unflushed`, which all outboxes of a server share, while it has some."""

    def __init__(self, transport: asyncio.Transport, unflushed: set[Outbox]) -> None:
        self._transport = transport
        self._unflushed = unflushed
        self._unsent = bytearray()
        self._unsent_answer_bytes = 0  # about, of what was queued since the client last had everything
        self._held: dict[str, Tokens] = {}  # BE tokens that wait to be sent together, by the client's id
        self._released_s = float("-inf")

    def send(self, message: msgspec.Struct) -> None:
        """Send a message now."""
        self._unsent += frame(message)
        self.flush()

    def queue(self, message: msgspec.Struct) -> None:
        """Send a message after all events of the step have arrived: one write per client, not one per token."""
        self._unsent += frame(message)
        self._unflushed.add(self)

    def queue_end(self, message: msgspec.Struct) -> None:
        """Queue the end of a request, which may come with long answers about its prompt."""
        num_bytes = len(self._unsent)
        self.queue(message)
        self._unsent_answer_bytes += len(self._unsent) - num_bytes

    def hold(self, tokens: Tokens) -> None:
        """Send tokens of bulk together with others, or before the end of their request."""
        if (held := self._held.get(tokens.id)) is None:
            self._held[tokens.id] = tokens
            self._unflushed.add(self)
            return
        held.ids.extend(tokens.ids)
        if held.logprobs is not None and tokens.logprobs is not None:
            held.logprobs.extend(tokens.logprobs)

    def release(self, request_id: str) -> None:
        """Queue the held tokens of a request."""
        if (held := self._held.pop(request_id, None)) is not None:
            self.queue(held)

    def drop(self, request_id: str) -> None:
        """Forget the held tokens of a request that the client no longer wants."""
        self._held.pop(request_id, None)

    @property
    def holds_tokens(self) -> bool:
        return bool(self._held)

    def flush(self) -> None:
        """Send what is queued, and the held tokens if it is time for them."""
        if self._held and monotonic() - self._released_s >= BE_SEND_INTERVAL_S:
            self._release_all()
        self._write()

    def flush_all(self) -> None:
        """Send everything."""
        self._release_all()
        self._write()

    def _release_all(self) -> None:
        self._released_s = monotonic()
        for tokens in self._held.values():
            self._unsent += frame(tokens)
        self._held.clear()

    def _write(self) -> None:
        if self._transport.is_closing():
            self._unsent.clear()
            self._held.clear()
            return
        num_bytes = self._transport.get_write_buffer_size()
        if not num_bytes:
            self._unsent_answer_bytes = len(self._unsent)
        if num_bytes > MAX_UNSENT_BYTES + min(self._unsent_answer_bytes, MAX_UNSENT_ANSWER_BYTES):
            self._transport.abort()  # waiting for a client this slow would delay the others
            return
        if self._unsent:
            self._transport.write(bytes(self._unsent))
            self._unsent.clear()
