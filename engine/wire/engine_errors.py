"""Why a client of an engine has no answer: the engine is gone, it does not respond, or it has rejected a request."""

from __future__ import annotations

from engine.wire.protocol import Rejected


class EngineGone(ConnectionError):
    """The engine cannot be reached, or the connection to it was lost."""


class EngineSilent(EngineGone):
    """The engine is connected, but does not answer, or its main loop makes no progress."""


class EngineRejected(Exception):
    """The engine did not start the request. `code` and `param` are those of `protocol.Rejected`."""

    def __init__(
        self, code: str, message: str, retry_after_s: float | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.param = param

    @classmethod
    def of(cls, rejected: Rejected) -> EngineRejected:
        """The error of a message that says so."""
        return cls(rejected.code, rejected.message, rejected.retry_after_s, rejected.param)
